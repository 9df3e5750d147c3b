//! What must hold on a real Xen host, a few lines each. A scenario's name is the property.

mod agreement;
mod counters;
mod daemon;
mod discipline;
mod faults;
pub(crate) mod footprint;
mod guests;
mod hostile_backend;
mod hostile_guest;
mod lab;
mod migration;
mod mistakes;
mod moves;
mod ptp;
mod suspend;
mod warning;

use anyhow::Result;

use crate::Lab;

/// A property and how it is put to the test.
pub struct Scenario {
    /// What must hold.
    pub name: &'static str,
    /// What it takes.
    pub room: Room,
    /// Fails if it does not.
    pub run: fn(&Lab) -> Result<()>,
}

/// What a scenario takes of the build machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// One host.
    Host,
    /// Two.
    Pair,
    /// One host and nobody beside it: it is about accuracy, or compares what things cost.
    Machine,
}

macro_rules! scenarios {
    ($($room:ident { $($module:ident::$name:ident,)* })*) => {
        /// All scenarios, in the order in which they run.
        pub const SCENARIOS: &[Scenario] =
            &[$($(Scenario { name: stringify!($name), room: Room::$room, run: $module::$name },)*)*];
    };
}

scenarios! {
    Machine {
        lab::readings_are_seen_between_a_question_and_its_answer,
        agreement::guests_agree_with_dom0_and_true_errors_are_inside_their_bounds,
        ptp::guests_have_the_time_of_a_ptp_hardware_clock,
        hostile_guest::a_hostile_guest_disturbs_nobody,
    }
    Host {
        agreement::ten_processes_in_a_guest_read_at_once,
        agreement::a_c_program_reads_the_clock_in_a_guest,
        daemon::guests_run_free_when_radclockd_is_killed_and_reconnect_when_it_is_back,
        daemon::guests_that_were_there_first_get_the_clock_and_lose_it_with_a_clean_stop,
        daemon::no_reading_is_wrong_when_a_host_is_held_up_without_a_daemon,
        daemon::a_silent_xenstored_costs_the_daemon_nothing,
        discipline::a_guests_system_clock_follows_the_shared_clock_through_a_restore,
        discipline::nobody_else_adjusts_the_clock_beside_discipline,
        guests::a_guest_created_twenty_times_leaves_nothing_behind,
        guests::a_rebooted_guest_gets_the_clock_again_and_leaves_nothing_behind,
        guests::an_unloaded_driver_can_be_loaded_again,
        counters::the_series_apply_to_debians_sources,
        counters::dom0_samples_counters_on_the_patched_xen_and_nobody_crashes_it,
        counters::the_clock_is_right_whichever_counter_is_kept,
        warning::a_guest_is_warned_and_sees_the_whole_disruption,
        faults::no_reading_is_wrong_whatever_goes_wrong_around_the_clock,
        mistakes::each_mistake_is_told_in_one_line,
        hostile_backend::a_broken_backend_gives_no_time_and_does_no_harm,
        suspend::saved_guests_get_the_clock_of_whichever_daemon_is_there,
        suspend::restored_guests_have_the_clock_that_the_daemon_has,
        suspend::guests_that_are_held_up_go_on_with_the_clock,
        suspend::guests_are_saved_and_restored_in_the_midst_of_page_updates,
    }
    Pair {
        migration::no_reading_is_wrong_while_guests_migrate_under_load,
        moves::a_migration_that_fails_resumes_with_the_clock,
        moves::a_guest_gets_the_clock_of_any_host_as_soon_as_that_has_one,
        moves::guests_migrate_in_the_midst_of_attach_detach_and_module_load,
    }
}

/// The scenarios whose names contain one of `names`; all if there is none.
pub fn choose(names: &[String]) -> Vec<&'static Scenario> {
    let wanted = |scenario: &&Scenario| names.is_empty() || names.iter().any(|name| scenario.name.contains(name));
    SCENARIOS.iter().filter(wanted).collect()
}
