//! The configuration file.
#![no_main]

use std::path::Path;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use radclock::ensemble::MAX_SERVERS;
use xen_backend::config::Config;

fuzz_target!(|text: &str| {
    match Config::parse(text, Path::new("/etc/radclock/radclockd.toml")) {
        Ok(config) => {
            assert!((1..=MAX_SERVERS).contains(&config.sources()));
            for server in &config.server {
                assert!(server.port() > 0 && server.polling().period >= Duration::from_secs(1));
                assert!(!server.address.0.contains(['\0', '\n', ' ']));
            }
            assert!(config.paths.socket().is_absolute() && config.clock.validity.0 > 0);
            assert!(!config.clock.time_domain.0.contains(['\0', '\n', '/']));
        }
        Err(error) => {
            let error = error.to_string();
            assert!(!error.contains('\n'), "not one line: {error:?}");
            assert!(error.starts_with("/etc/radclock/radclockd.toml:"), "{error}");
        }
    }
});
