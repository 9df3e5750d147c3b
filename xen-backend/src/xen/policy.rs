//! Which guests are offered the clock.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

/// What xl appends to a domain's name while it is being received from another host, and on the sending host while the
/// other one is told to start it.
const MOVING: [&str; 2] = ["--incoming", "--migratedaway"];

/// Which guests are offered the clock: `"all"`, `"none"`, or a list of names and UUIDs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum GuestPolicy {
    /// Each guest of the host.
    #[default]
    All,
    /// No guest but those that the administrator attaches by hand.
    None,
    /// Guests with one of these names or UUIDs. A UUID stays the same through a migration, a name may not.
    List(Vec<String>),
}

impl GuestPolicy {
    /// Whether a guest is to have the clock. UUIDs are compared without regard to case.
    pub fn wants(&self, name: &str, uuid: &str) -> bool {
        let name = MOVING.iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
        match self {
            GuestPolicy::All => true,
            GuestPolicy::None => false,
            GuestPolicy::List(list) => list.iter().any(|entry| entry == name || entry.eq_ignore_ascii_case(uuid)),
        }
    }
}

impl<'de> Deserialize<'de> for GuestPolicy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PolicyVisitor;

        impl<'de> Visitor<'de> for PolicyVisitor {
            type Value = GuestPolicy;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"all\", \"none\", or a list of guests' names and UUIDs")
            }

            fn visit_str<E: Error>(self, value: &str) -> Result<GuestPolicy, E> {
                match value {
                    "all" => Ok(GuestPolicy::All),
                    "none" => Ok(GuestPolicy::None),
                    other => Err(E::invalid_value(serde::de::Unexpected::Str(other), &self)),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<GuestPolicy, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = list.next_element::<String>()? {
                    if entry.trim().is_empty() {
                        return Err(A::Error::custom("a guest's name or UUID cannot be empty"));
                    }
                    entries.push(entry);
                }
                Ok(GuestPolicy::List(entries))
            }
        }

        deserializer.deserialize_any(PolicyVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "7d7a9a9e-2b1c-4d7e-9f0a-1b2c3d4e5f60";

    fn parse(value: &str) -> Result<GuestPolicy, toml::de::Error> {
        #[derive(serde::Deserialize)]
        struct Config {
            guests: GuestPolicy,
        }
        toml::from_str::<Config>(&format!("guests = {value}")).map(|config| config.guests)
    }

    #[test]
    fn a_policy_is_a_word_or_a_list() {
        assert_eq!(parse("\"all\"").expect("all"), GuestPolicy::All);
        assert_eq!(parse("\"none\"").expect("none"), GuestPolicy::None);
        assert_eq!(parse("[\"db\"]").expect("a list"), GuestPolicy::List(vec!["db".into()]));
        for wrong in ["\"some\"", "7", "true", "[1]", "[\"\"]"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_wrong_policy_says_what_is_expected() {
        let message = parse("\"some\"").expect_err("wrong").to_string();
        assert!(message.contains("\"all\", \"none\", or a list of guests' names and UUIDs"), "{message}");
    }

    #[test]
    fn a_list_names_guests_by_name_or_uuid() {
        let policy = GuestPolicy::List(vec!["db".into(), UUID.to_uppercase()]);
        assert!(policy.wants("db", ""));
        assert!(policy.wants("whatever", UUID));
        assert!(!policy.wants("db2", ""));
        assert!(!policy.wants("", ""));
    }

    #[test]
    fn a_guest_on_its_way_is_known_by_its_name() {
        let policy = GuestPolicy::List(vec!["db".into()]);
        assert!(policy.wants("db--incoming", ""));
        assert!(policy.wants("db--migratedaway", ""));
        assert!(!policy.wants("db--incoming--incoming", ""));
    }
}
