//! The name of a device on UDP, which describes it.

use super::{DeviceHandle, IdleMode, Key, Udp, UdpConfig};
use crate::{DeviceConfig, Faults, PathConfig, Profile};
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// The description of a software device on UDP. It is parsed from the part of a device's name behind `soft:`:
///
/// `soft:udp=127.0.0.1:0,loss=0.2,dup=0.1,jitter=1ms,seed=7`
///
/// | key | meaning | default |
/// | --- | --- | --- |
/// | `udp` | IPv4 address and port to listen at; port 0 takes a free one | `127.0.0.1:0` |
/// | `loss` | share of packets lost, 0 to 1 | 0 |
/// | `dup` | share of packets doubled, 0 to 1 | 0 |
/// | `corrupt` | share of packets damaged, 0 to 1 | 0 |
/// | `outage` | time after its first packet during which nothing gets through | 0 |
/// | `reorder` | `on` or `off` | `on` |
/// | `delay`, `jitter` | time added to every packet, with unit (`us`, `ms`, `s`) | 0 |
/// | `path0` … `path3` | what one of the four paths adds, as `LOSS@DELAY`: `path1=0.5@2ms` | `0@0ms` |
/// | `seed` | seed of all of this | 1 |
/// | `subnet` | number of its subnet; packets to another are dropped silently | 0 |
/// | `profile` | the instance type whose device it resembles: `p4d`, `p5`, `p5en` or `p6-b200` | `p5en` |
/// | `mtu` | payload bytes of a packet | 8928 |
/// | `rxrate` | bytes a second that it takes in: a slow receiver | any |
/// | `wqetime` | time between two WQEs that it fetches: a slow device | 0 |
/// | `keyfile` | file with a secret that it shares with its peers ([`Key::read`]); a path without commas | none |
/// | `idle` | what its thread does without work: `spin`, `nap` or `sleep` | `nap` |
/// | `reqid64` | 64-bit request ids, `on` or `off` | `off` |
///
/// The secret itself cannot be written here: names of devices are seen in lists of processes and in logs.
#[derive(Clone, Debug, Default)]
pub struct SoftSpec {
    /// Where the device listens, and how its packets are treated.
    pub udp: UdpConfig,
    /// Number of its subnet.
    pub subnet: u16,
    /// The instance type whose device it resembles.
    pub profile: Profile,
    /// MTU in bytes, if not the profile's.
    pub mtu: Option<u32>,
    /// Faults of the device.
    pub faults: Faults,
    /// Send queues have 64-bit request ids.
    pub req_id_64: bool,
    /// The file with its key, unless `udp` has one.
    pub key_file: Option<PathBuf>,
}

impl SoftSpec {
    /// Starts the device. If it is `shareable`, other processes can map the memory of its rings.
    ///
    /// # Errors
    /// Those of [`Udp::start`] and [`Key::read`].
    pub fn start(&self, shareable: bool) -> io::Result<Udp> {
        let mut udp = self.udp.clone();
        if let (None, Some(path)) = (&udp.key, &self.key_file) {
            udp.key = Some(Key::read(path)?);
        }
        let udp = Udp::start(&udp, |gid| {
            let mut config = DeviceConfig::of(self.profile, gid.in_subnet(self.subnet));
            config.attributes.mtu = self.mtu.unwrap_or(config.attributes.mtu);
            config.req_id_64 = self.req_id_64;
            config.seed = self.udp.link.seed;
            config.shareable_rings = shareable;
            config
        })?;
        DeviceHandle::with(&udp, &mut |device| device.set_faults(self.faults));
        Ok(udp)
    }
}

impl FromStr for SoftSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut spec = Self::default();
        for pair in text.split(',').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or(format!("{pair:?} is not KEY=VALUE"))?;
            let wrong = |expected: &str| format!("{key}={value:?}: expected {expected}");
            let share = || {
                let share = value.parse::<f64>().ok().filter(|share| (0.0..=1.0).contains(share));
                share.ok_or(wrong("a share from 0 to 1"))
            };
            let switch = || match value {
                "on" => Ok(true),
                "off" => Ok(false),
                _ => Err(wrong("on or off")),
            };
            let number = || value.parse::<u64>().map_err(|_| wrong("a whole number"));
            let link = &mut spec.udp.link;
            let time = || parse_duration(value).ok_or(wrong("a time such as 50us, 2ms or 1s"));
            match key {
                "udp" => spec.udp.bind = value.parse().map_err(|_| wrong("an IPv4 address and port"))?,
                "loss" => link.loss = share()?,
                "dup" => link.duplicate = share()?,
                "corrupt" => link.corrupt = share()?,
                "outage" => link.outage = time()?,
                "reorder" => link.reorder = switch()?,
                "delay" => link.delay = time()?,
                "jitter" => link.jitter = time()?,
                "seed" => link.seed = number()?,
                "path0" | "path1" | "path2" | "path3" => {
                    let path = &mut link.paths[usize::from(key.as_bytes()[4] - b'0')];
                    *path = parse_path(value).ok_or(wrong("a share and a time such as 0.5@2ms"))?;
                }
                "subnet" => spec.subnet = value.parse().map_err(|_| wrong("0 to 65535"))?,
                "profile" => spec.profile = value.parse().map_err(|expected: String| wrong(&expected))?,
                "rxrate" => spec.faults.rx_rate = Some(number()?),
                "wqetime" => spec.faults.wqe_time = time()?,
                "idle" => {
                    spec.udp.idle = match value {
                        "spin" => IdleMode::Spin,
                        "nap" => IdleMode::Nap,
                        "sleep" => IdleMode::Sleep,
                        _ => return Err(wrong("spin, nap or sleep")),
                    }
                }
                "mtu" => {
                    let mtu = value.parse().ok().filter(|mtu| (64..=60_000).contains(mtu));
                    spec.mtu = Some(mtu.ok_or(wrong("64 to 60000 bytes"))?);
                }
                "keyfile" if value.is_empty() => return Err(wrong("a file")),
                "keyfile" => spec.key_file = Some(value.into()),
                "key" => {
                    return Err(
                        "a key does not belong in a name: put it in a file, and name that (keyfile=PATH)".into()
                    );
                }
                "reqid64" => spec.req_id_64 = switch()?,
                _ => {
                    return Err(format!(
                        "{key:?} is no key: there are udp, loss, dup, corrupt, outage, reorder, delay, jitter, path0 to path3, \
                         seed, subnet, profile, mtu, rxrate, wqetime, keyfile, idle, reqid64"
                    ));
                }
            }
        }
        Ok(spec)
    }
}

fn parse_path(text: &str) -> Option<PathConfig> {
    let (loss, delay) = text.split_once('@')?;
    let loss = loss.parse().ok().filter(|loss| (0.0..=1.0).contains(loss))?;
    Some(PathConfig { loss, delay: parse_duration(delay)?, cut: false })
}

fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..digits].parse().ok()?;
    match &text[digits..] {
        "us" => Some(Duration::from_micros(number)),
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LinkConfig;
    use std::net::{Ipv4Addr, SocketAddrV4};

    #[test]
    fn a_name_describes_a_device_or_says_what_is_wrong_with_it() {
        let spec: SoftSpec =
            "udp=127.0.0.1:4000,loss=0.2,dup=0.1,reorder=off,delay=50us,jitter=2ms,seed=7,mtu=1024".parse().unwrap();
        assert_eq!(spec.udp.bind, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 4000));
        let link = LinkConfig {
            loss: 0.2,
            duplicate: 0.1,
            reorder: false,
            delay: Duration::from_micros(50),
            jitter: Duration::from_millis(2),
            seed: 7,
            ..LinkConfig::default()
        };
        assert_eq!((spec.udp.link, spec.mtu), (link, Some(1024)));
        let spec: SoftSpec = "path2=0.5@3ms,profile=p4d,rxrate=1000000,wqetime=7us,idle=sleep".parse().unwrap();
        let path = PathConfig { loss: 0.5, delay: Duration::from_millis(3), cut: false };
        assert_eq!((spec.udp.link.paths[2], spec.profile, spec.udp.idle), (path, Profile::P4d, IdleMode::Sleep));
        let faults = Faults { rx_rate: Some(1_000_000), wqe_time: Duration::from_micros(7), ..Faults::default() };
        assert_eq!(spec.faults, faults);
        for (text, complaint) in [
            ("loss=2", "expected a share from 0 to 1"),
            ("loss", "is not KEY=VALUE"),
            ("speed=1", "there are udp, loss"),
            ("delay=5", "a time such as 50us"),
            ("mtu=10", "64 to 60000"),
            ("path4=0@0ms", "path0 to path3"),
            ("path1=0.5", "such as 0.5@2ms"),
            ("profile=p3", "expected p4d, p5, p5en or p6-b200"),
            ("subnet=70000", "0 to 65535"),
            ("idle=doze", "expected spin, nap or sleep"),
            ("rxrate=fast", "a whole number"),
            ("keyfile=", "a file"),
            ("key=0123456789abcdef", "put it in a file"),
        ] {
            let error = text.parse::<SoftSpec>().unwrap_err();
            assert!(error.contains(complaint), "{text}: {error}");
        }
    }
}
