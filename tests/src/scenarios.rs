//! What must hold on a real Xen host, a few lines each. A scenario's name is the property.

mod agreement;
mod lab;

use anyhow::Result;

use crate::Lab;

/// A property and how it is put to the test.
pub struct Scenario {
    /// What must hold.
    pub name: &'static str,
    /// Fails if it does not.
    pub run: fn(&Lab) -> Result<()>,
}

macro_rules! scenarios {
    ($($module:ident::$name:ident,)*) => {
        /// All scenarios, in the order in which they run.
        pub const SCENARIOS: &[Scenario] = &[$(Scenario { name: stringify!($name), run: $module::$name },)*];
    };
}

scenarios! {
    lab::readings_are_seen_between_a_question_and_its_answer,
    agreement::guests_agree_with_dom0_and_true_errors_are_inside_their_bounds,
}

/// The scenarios whose names contain one of `names`; all if there is none.
pub fn choose(names: &[String]) -> Vec<&'static Scenario> {
    let wanted = |scenario: &&Scenario| names.is_empty() || names.iter().any(|name| scenario.name.contains(name));
    SCENARIOS.iter().filter(wanted).collect()
}
