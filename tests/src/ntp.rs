//! A real NTP server on the build machine: chronyd as stratum 1 on the machine's own clock, on loopback only.
//! It never adjusts that clock.

use std::net::UdpSocket;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::command::{Background, expression};
use crate::wait;

/// A running server. It ends when dropped.
pub struct NtpServer {
    process: Background,
    port: u16,
}

impl NtpServer {
    /// Starts one on a free port of 127.0.0.1; its files are in `dir`.
    pub fn start(dir: &Path) -> Result<NtpServer> {
        let port = UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port();
        let log = dir.join("chronyd.log");
        let configuration = [
            "local stratum 1".to_owned(),
            "allow 127.0.0.0/8".to_owned(),
            "bindaddress 127.0.0.1".to_owned(),
            format!("port {port}"),
            "cmdport 0".to_owned(),
            "bindcmdaddress /".to_owned(),
            format!("pidfile {}", dir.join("chronyd.pid").display()),
        ];
        let options = ["-d", "-x", "-U", "-u", "root"].map(str::to_owned).into_iter();
        let chronyd = expression("chronyd", options.chain(configuration)).stderr_to_stdout().stdout_path(&log);
        let server = NtpServer { process: Background::start("chronyd", &chronyd)?, port };
        wait::until("chronyd to answer", Duration::from_secs(10), || {
            if server.process.ended()?.is_some() {
                bail!("chronyd ended:\n{}", std::fs::read_to_string(&log)?);
            }
            server.answers()
        })?;
        Ok(server)
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether a client's request is answered by a synchronised server.
    fn answers(&self) -> Result<Option<()>> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let mut packet = [0; 48];
        packet[0] = 4 << 3 | 3;
        packet[40] = 1;
        // Until the server listens, its port answers with an error.
        let stratum = socket
            .send_to(&packet, ("127.0.0.1", self.port))
            .and_then(|_| socket.recv(&mut packet))
            .map_or(0, |length| if length == 48 { packet[1] } else { 0 });
        Ok((stratum == 1).then_some(()))
    }
}
