//! Which name means which bundle.

use std::collections::BTreeMap;

use crate::publish::Handle;

/// The bundles by name.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    entries: BTreeMap<String, Handle>,
}

impl Catalog {
    /// A catalog of these bundles, each under its own name.
    pub fn new(handles: impl IntoIterator<Item = Handle>) -> Self {
        Self { entries: handles.into_iter().map(|handle| (handle.name().to_owned(), handle)).collect() }
    }

    /// The bundle that a request's resource names: `/bundles/NAME`, `/bundle/NAME` or
    /// `/NAME`, without the leading slash.
    pub fn find(&self, resource: &str) -> Option<&Handle> {
        self.entries.get(resource).or_else(|| self.entries.get(bundle_name(resource)))
    }

    /// All bundles, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Handle> {
        self.entries.values()
    }
}

/// The name in a resource, for one that no bundle has: access is judged by it as if there
/// were such a bundle.
pub fn bundle_name(resource: &str) -> &str {
    let stripped = resource.strip_prefix("bundles/").or_else(|| resource.strip_prefix("bundle/"));
    stripped.unwrap_or(resource)
}
