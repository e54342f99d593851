//! Which clients of the fleet view a request selects, by the query of `/fleet` and of the page.

use crate::fleet::{ClientKey, ClientState, Filter};

/// The parameters `bundle`, `state` and `search`. An empty value is an absent one, as a form sends it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Selection {
    pub(super) bundle: Option<String>,
    /// Any if it is empty.
    pub(super) states: Vec<ClientState>,
    pub(super) search: Option<String>,
}

impl Selection {
    /// Takes a parameter. Returns whether it is one of these.
    ///
    /// # Errors
    /// The value is no state.
    pub(super) fn take(&mut self, key: &str, value: &str) -> Result<bool, String> {
        match (key, value) {
            ("bundle" | "state" | "search", "") => {}
            ("bundle", _) => self.bundle = Some(value.to_owned()),
            ("state", _) => {
                let state = state(value)?;
                if !self.states.contains(&state) {
                    self.states.push(state);
                }
            }
            ("search", _) => self.search = Some(value.to_owned()),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Whether clients in this state are selected.
    pub(super) fn has_state(&self, state: ClientState) -> bool {
        self.states.is_empty() || self.states.contains(&state)
    }

    /// Whether clients of this bundle are selected.
    pub(super) fn has_bundle(&self, name: &str) -> bool {
        self.bundle.as_deref().is_none_or(|bundle| bundle == name)
    }

    /// Selects at most `limit` clients, those behind `after`.
    pub(super) fn filter(&self, after: Option<ClientKey>, limit: usize) -> Filter<'_> {
        Filter {
            bundle: self.bundle.as_deref(),
            states: self.states.clone(),
            search: self.search.as_deref(),
            after,
            limit,
        }
    }
}

/// The error for a parameter that an endpoint does not have. `keys` are those that it has.
pub(super) fn unknown_parameter(key: &str, keys: &str) -> String {
    format!("unknown parameter {key:?}; the parameters are {keys}")
}

fn state(value: &str) -> Result<ClientState, String> {
    ClientState::from_label(value).ok_or_else(|| {
        let states = ClientState::ALL.map(ClientState::label).join(", ");
        format!("state: {value:?} is no state; the states are {states}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_values_select_nothing_and_a_repeated_state_is_one() {
        let mut selection = Selection::default();
        for (key, value) in [("bundle", ""), ("state", ""), ("search", "")] {
            assert_eq!(selection.take(key, value), Ok(true));
        }
        assert_eq!(selection, Selection::default());
        assert!(selection.has_state(ClientState::None) && selection.has_bundle("authz"));
        for _ in 0..1000 {
            assert_eq!(selection.take("state", "failing"), Ok(true));
        }
        assert_eq!(selection.take("limit", "7"), Ok(false));
        assert_eq!(selection.states, [ClientState::Failing]);
        assert!(!selection.has_state(ClientState::None));
        assert_eq!(selection.take("bundle", "data"), Ok(true));
        assert!(!selection.has_bundle("authz"));
        assert!(selection.take("state", "Failing").is_err());
    }
}
