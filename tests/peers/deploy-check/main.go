// deploy-check reads files of config/deploy as the programs that they are for read them:
//
//	deploy-check compose FILE     loads FILE as docker compose does, and prints the project as JSON
//	deploy-check kustomize DIR    prints what `kubectl apply --kustomize DIR` applies
//	deploy-check monitoring       decodes a resource of the Prometheus operator from standard input, strictly
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/compose-spec/compose-go/v2/cli"
	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "deploy-check:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch strings.Join(args, " ") {
	case "monitoring":
		return decode(os.Stdin)
	}
	if len(args) == 2 && args[0] == "compose" {
		return compose(args[1])
	}
	if len(args) == 2 && args[0] == "kustomize" {
		return kustomize(args[1])
	}
	return fmt.Errorf("usage: deploy-check compose FILE | kustomize DIR | monitoring")
}

func compose(file string) error {
	options, err := cli.NewProjectOptions([]string{file}, cli.WithoutEnvironmentResolution)
	if err != nil {
		return err
	}
	project, err := options.LoadProject(context.Background())
	if err != nil {
		return err
	}
	document, err := project.MarshalJSON()
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(document)
	return err
}

func kustomize(folder string) error {
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), folder)
	if err != nil {
		return err
	}
	document, err := built.AsYaml()
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(document)
	return err
}

func decode(input io.Reader) error {
	text, err := io.ReadAll(input)
	if err != nil {
		return err
	}
	var kind metav1.TypeMeta
	if err := yaml.Unmarshal(text, &kind); err != nil {
		return err
	}
	if want := monitoring.SchemeGroupVersion.String(); kind.APIVersion != want {
		return fmt.Errorf("apiVersion is %q instead of %q", kind.APIVersion, want)
	}
	switch kind.Kind {
	case monitoring.ServiceMonitorsKind:
		return yaml.UnmarshalStrict(text, &monitoring.ServiceMonitor{})
	case monitoring.PrometheusRuleKind:
		return yaml.UnmarshalStrict(text, &monitoring.PrometheusRule{})
	}
	return fmt.Errorf("unknown kind %q", kind.Kind)
}
