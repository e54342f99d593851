# syntax=docker/dockerfile:1

FROM rust:1.95-slim-bookworm AS build
# jemalloc (the feature) builds with make; gcc is there.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends make \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY . .
# The target folder is a cache that the image doesn't see, so the binary leaves it here.
ARG TARGETARCH
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/build/target,id=bundlegate-target-${TARGETARCH},sharing=locked \
    cargo build --release --locked --features jemalloc --bin bundlegate \
 && install -D -m 0755 target/release/bundlegate /out/bundlegate \
 && install -d -m 0700 /out/cache

# Nothing but glibc, libgcc and the CA certificates; no shell.
FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="bundlegate" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.description="Serves cosign-verified OPA policy bundles from any OCI registry" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="gcr.io/distroless/cc-debian12:nonroot"
COPY LICENSE /usr/share/doc/bundlegate/LICENSE
COPY --from=build /out/bundlegate /usr/local/bin/bundlegate
# For `cache.directory: /var/cache/bundlegate`; a fresh volume inherits the owner.
COPY --from=build --chown=65532:65532 /out/cache /var/cache/bundlegate
VOLUME /var/cache/bundlegate
# By number, so that Kubernetes' runAsNonRoot can tell.
USER 65532:65532
# The data listener, plain or TLS, and the admin listener, which by default answers only
# inside the container (`server.admin`).
EXPOSE 8080 8443 8090
# Begins the drain, which takes server.drain.notice and .over: give the container more than these 15 s before
# it is killed (`docker stop --time 45`, stop_grace_period, terminationGracePeriodSeconds). There is no
# HEALTHCHECK, which OCI images don't have: orchestrators ask /livez and /readyz of the admin listener, and
# compose can run `bundlegate status` (config/deploy).
STOPSIGNAL SIGTERM
ENTRYPOINT ["bundlegate"]
CMD ["serve", "--config", "/etc/bundlegate/bundlegate.yaml"]
