{{- define "bundlegate.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "bundlegate.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "bundlegate.labels" -}}
{{ include "bundlegate.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "bundlegate.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "bundlegate.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "bundlegate.configMapName" -}}
{{- default (include "bundlegate.fullname" .) .Values.existingConfigMap -}}
{{- end -}}

{{- define "bundlegate.image" -}}
{{- $tag := default .Chart.AppVersion .Values.image.tag -}}
{{- if .Values.image.digest -}}
{{- printf "%s:%s@%s" .Values.image.repository $tag .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository $tag -}}
{{- end -}}
{{- end -}}

{{- /* The port of config.server.listen or .admin, which pods have to reach. */ -}}
{{- define "bundlegate.port" -}}
{{- $address := get .root.Values.config.server .key -}}
{{- if or (hasPrefix "unix:" $address) (hasPrefix "127." $address) (hasPrefix "[::1]" $address) -}}
{{- fail (printf "config.server.%s: %q is an address within the pod, which the kubelet and other pods can't reach; write one such as \":8090\"" .key $address) -}}
{{- end -}}
{{- $port := regexFind "[0-9]+$" $address -}}
{{- if not $port -}}
{{- fail (printf "config.server.%s: %q has no port; write one such as \":8090\"" .key $address) -}}
{{- end -}}
{{- $port -}}
{{- end -}}

{{- /* A duration of bundlegate.yaml in whole seconds, rounded up. */ -}}
{{- define "bundlegate.seconds" -}}
{{- $units := dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000 -}}
{{- $unit := regexFind "(ms|s|m|h)$" . -}}
{{- $number := regexFind "^[0-9]+" . -}}
{{- if or (not $unit) (ne . (printf "%s%s" $number $unit)) -}}
{{- fail (printf "config.server.drain: %q is no duration with one unit; write one such as 10s" .) -}}
{{- end -}}
{{- div (add (mul (int64 $number) (get $units $unit)) 999) 1000 -}}
{{- end -}}

{{- /* Fails if the kubelet would kill a pod that drains. */ -}}
{{- define "bundlegate.checkGracePeriod" -}}
{{- $drain := default dict .Values.config.server.drain -}}
{{- $notice := include "bundlegate.seconds" (default "5s" $drain.notice) | int64 -}}
{{- $over := include "bundlegate.seconds" (default "10s" $drain.over) | int64 -}}
{{- $needed := add $notice $over 15 -}}
{{- if lt (int64 .Values.terminationGracePeriodSeconds) $needed -}}
{{- fail (printf "terminationGracePeriodSeconds: %d is less than config.server.drain takes; write %d or more" (int64 .Values.terminationGracePeriodSeconds) $needed) -}}
{{- end -}}
{{- end -}}

{{- /* The part of the configuration that running pods can't apply. */ -}}
{{- define "bundlegate.restartKeys" -}}
{{- $server := pick .Values.config.server "listen" "admin" "ready_after" -}}
{{- $cache := pick (default dict .Values.config.cache) "directory" "required" -}}
{{- dict "server" $server "cache" $cache "map" .Values.existingConfigMap | toJson | sha256sum -}}
{{- end -}}
