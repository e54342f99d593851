//! Docker Hub, whose names in references are not the host that serves its API.

/// The name in references.
const NAME: &str = "docker.io";
/// The host of its registry API: `docker.io` itself serves web pages.
const API_HOST: &str = "registry-1.docker.io";
/// A further name, the host of the former API. Docker stores credentials under it.
const INDEX_HOST: &str = "index.docker.io";

/// Whether a host is a name of Docker Hub.
pub(super) fn is_docker_hub(host: &str) -> bool {
    [NAME, API_HOST, INDEX_HOST].contains(&host)
}

/// The host to connect to for a registry.
pub(super) fn api_host(host: &str) -> &str {
    if is_docker_hub(host) { API_HOST } else { host }
}

/// The name under which mirrors know a registry (`?ns=`).
pub(super) fn namespace(host: &str) -> &str {
    if is_docker_hub(host) { NAME } else { host }
}

/// Whether two hosts in references are one registry: the same name, or two names of Docker Hub.
pub fn is_same_registry(one: &str, other: &str) -> bool {
    namespace(one).eq_ignore_ascii_case(namespace(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_docker_hub_is_served_by_one_host_and_known_to_mirrors_by_one_name() {
        for name in ["docker.io", "index.docker.io", "registry-1.docker.io"] {
            assert_eq!(
                (api_host(name), namespace(name)),
                ("registry-1.docker.io", "docker.io")
            );
            assert!(is_same_registry("docker.io", name), "{name}");
        }
        for other in ["docker.io:443", "mirror.docker.io", "ghcr.io"] {
            assert_eq!((api_host(other), namespace(other)), (other, other));
            assert!(!is_same_registry("docker.io", other), "{other}");
        }
        assert!(is_same_registry("r.example:5000", "R.example:5000"));
    }
}
