//! Options that every command knows, and the connection they describe.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use flotilla_proto::Error;
use flotilla_proto::limits::TIMEOUT_MS_MAX;
use flotilla_router::{Client, ClientConfig};
use flotilla_tls::{Files, Tls};

use super::failure::{Failure, Result};
use super::output::Output;

/// Options of every command.
#[derive(Args, Clone, Debug)]
pub struct Global {
    /// Client addresses of one or more nodes; the others are learned from them
    #[arg(
        long,
        global = true,
        env = "FLOTILLA_ADDR",
        value_name = "HOST:PORT,...",
        default_value = "127.0.0.1:7300",
        value_delimiter = ',',
        help_heading = "Global options"
    )]
    pub addr: Vec<String>,
    /// How long one request may take, such as 500ms or 5s
    #[arg(
        long,
        global = true,
        value_name = "TIME",
        default_value = "5s",
        value_parser = parse_timeout,
        help_heading = "Global options"
    )]
    pub timeout: Duration,
    /// The certificate of the cluster's CA: speak TLS, with nodes that it vouches for
    #[arg(long, global = true, env = "FLOTILLA_TLS_CA", value_name = "FILE", help_heading = "Global options")]
    pub tls_ca: Option<PathBuf>,
    /// This side's certificate: a client's, or with `start` the node's
    #[arg(long, global = true, env = "FLOTILLA_TLS_CERT", value_name = "FILE", help_heading = "Global options")]
    pub tls_cert: Option<PathBuf>,
    /// The key of that certificate
    #[arg(long, global = true, env = "FLOTILLA_TLS_KEY", value_name = "FILE", help_heading = "Global options")]
    pub tls_key: Option<PathBuf>,
    /// For whom the output is
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "FORMAT",
        default_value = "text",
        help_heading = "Global options"
    )]
    pub output: Output,
}

impl Global {
    /// Connects to the cluster.
    pub async fn client(&self) -> Result<Client> {
        let addresses = self.addr.iter().map(|address| address.trim()).filter(|address| !address.is_empty());
        let connect_timeout = self.timeout.min(Duration::from_secs(1));
        let config =
            ClientConfig { timeout: self.timeout, connect_timeout, tls: self.tls()?, ..ClientConfig::default() };
        Client::connect(addresses, config).await.map_err(|error| match error {
            Error::Unavailable { reason } if reason.contains("TLS") || reason.contains("certificate") => {
                Failure::failed(reason)
                    .hint("docs/security.md says who needs which certificate; `flotilla cert` makes them")
            }
            Error::Unavailable { reason } => Failure::failed(reason)
                .hint("is the cluster running? `flotilla run` starts one on this machine; --addr names other nodes"),
            Error::InvalidArgument { what, hint } => Failure::usage(what).hint(hint),
            error => error.into(),
        })
    }

    /// Certificates for TLS; `None`: plain text.
    fn tls(&self) -> Result<Option<Arc<Tls>>> {
        let files = match (&self.tls_ca, &self.tls_cert, &self.tls_key) {
            (None, None, None) => return Ok(None),
            (Some(ca), None, None) => Files { ca: ca.clone(), own: None },
            (Some(ca), Some(cert), Some(key)) => Files { ca: ca.clone(), own: Some((cert.clone(), key.clone())) },
            (None, ..) => {
                return Err(Failure::usage("--tls-cert and --tls-key without --tls-ca")
                    .hint("add --tls-ca: the certificate of the CA that vouches for the nodes"));
            }
            (Some(_), ..) => {
                return Err(Failure::usage("one of --tls-cert and --tls-key without the other")
                    .hint("a certificate comes with its key; leave both away if the nodes ask for none"));
            }
        };
        let tls = Tls::load(files).map_err(|error| {
            Failure::usage(format!("--{error}")).hint("`flotilla cert client` makes a certificate and its key")
        })?;
        Ok(Some(Arc::new(tls)))
    }

    /// Whether programs read the output.
    pub fn json(&self) -> bool {
        self.output == Output::Json
    }
}

/// A time: a number with `ms`, `s`, `m`, `h` or `d`.
pub fn parse_duration(text: &str) -> std::result::Result<Duration, String> {
    let split = text.find(|letter: char| letter.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit_seconds = match unit {
        "ms" => 0.001,
        "s" | "" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return Err(format!("\"{unit}\" is no unit of time: write ms, s, m, h or d")),
    };
    let amount: f64 = number.trim().parse().map_err(|_| "write a number and a unit, such as 500ms or 5s".to_owned())?;
    Duration::try_from_secs_f64(amount * unit_seconds).map_err(|error| error.to_string())
}

fn parse_timeout(text: &str) -> std::result::Result<Duration, String> {
    let timeout = parse_duration(text)?;
    let longest = Duration::from_millis(TIMEOUT_MS_MAX);
    if timeout < Duration::from_millis(1) || timeout > longest {
        return Err(format!("a time-out lies between 1ms and {}s", longest.as_secs()));
    }
    Ok(timeout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_understood_and_checked() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("10"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("2d"), Ok(Duration::from_secs(172_800)));
        for bad in ["", "s", "5x", "-1s", "nans", "1e400s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        assert!(parse_timeout("0s").is_err());
        assert!(parse_timeout("61s").is_err());
    }
}
