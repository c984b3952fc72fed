//! The configuration of a software device: what it can do, and how patient it is.

use crate::wire::MIN_STRIDE;
use efa_memory::{Shared, Unit};
use efa_types::{ControlError, DeviceAttributes, Gid};
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// An EC2 instance type whose devices a software device can resemble. [`DeviceConfig::of`] says in what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Profile {
    /// p4d: four devices of 100 Gb/s.
    P4d,
    /// p5: 32 devices of 100 Gb/s.
    P5,
    /// p5en: 16 devices of 200 Gb/s.
    #[default]
    P5en,
    /// p6-b200: eight devices of 400 Gb/s.
    P6B200,
}

impl Profile {
    /// All instance types.
    pub const ALL: [Self; 4] = [Self::P4d, Self::P5, Self::P5en, Self::P6B200];
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::P4d => "p4d",
            Self::P5 => "p5",
            Self::P5en => "p5en",
            Self::P6B200 => "p6-b200",
        })
    }
}

impl FromStr for Profile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|profile| profile.to_string() == text);
        found.ok_or("p4d, p5, p5en or p6-b200".into())
    }
}

/// A secret of 32 bytes. [`Debug`](fmt::Debug) does not show it.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Secret(pub [u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The configuration of a device: limits, capabilities and timing.
///
/// [`DeviceConfig::of`] says where each value comes from. If there is no public figure, the value is *assumed*.
#[derive(Clone, Debug)]
pub struct DeviceConfig {
    /// What the device reports about itself.
    pub attributes: DeviceAttributes,
    /// Distinguishes this life of the device from others at the same address. No two of them may have the same number
    /// and the same secret.
    pub incarnation: u64,
    /// Makes the numbers that peers are told impossible to guess. It must be random where strangers can send packets.
    pub secret: Secret,
    /// Seed of everything that is random: keys, scheduling.
    pub seed: u64,

    /// PCI device id.
    pub vendor_part_id: u16,
    /// Speed of its link in Gb/s. The device reports it, and does not keep to it.
    pub link_gbps: u32,

    /// Bytes of the longest send ring (`max_llq_size`).
    pub max_sq_bytes: u32,
    /// Most receive descriptors of a queue pair.
    pub max_rq_descs: u32,
    /// Most WQEs between two doorbells, in units of 64 bytes (`max_tx_batch`).
    pub max_tx_batch: u16,
    /// Most completion queues.
    pub max_cq: u32,
    /// Most memory regions.
    pub max_mr: u32,
    /// Most protection domains.
    pub max_pd: u32,
    /// Most address handles.
    pub max_ah: u32,
    /// Sub-queues of a completion queue (`sub_cqs_per_cq`).
    pub sub_cqs: u16,

    /// Send queues carry 64-bit request ids.
    pub req_id_64: bool,
    /// Packets to this device's own address are delivered. EFA does not deliver them.
    pub loopback: bool,
    /// Rings and doorbells lie in memory that other processes can map ([`Shared::file`]).
    pub shareable_rings: bool,

    /// Number of paths over which packets to a peer are spread.
    pub paths: u8,
    /// Retransmission timeout before a round trip was measured.
    pub initial_rto: Duration,
    /// Shortest retransmission timeout.
    pub min_rto: Duration,
    /// Longest retransmission timeout.
    pub max_rto: Duration,
    /// How long a peer may stay silent before what is outstanding towards it fails.
    pub peer_timeout: Duration,
    /// Pause before a message is offered again to a receiver that was not ready. It doubles with every refusal, up to
    /// 64 times this value, and is never longer than a quarter of `peer_timeout`.
    pub rnr_delay: Duration,
}

impl DeviceConfig {
    /// Allocates memory for a ring, or a page for doorbells.
    pub(crate) fn ring_memory<U: Unit>(&self, bytes: usize) -> Result<Arc<Shared<U>>, ControlError> {
        let memory = if self.shareable_rings { Shared::shareable(bytes) } else { Shared::zeroed(bytes) };
        memory.map_err(|_| ControlError::NoMemory { what: "a ring or a doorbell", bytes })
    }

    /// Returns the incarnation that this life of the device has for `peer`: a hash of
    /// [`incarnation`](Self::incarnation) and the peer's address with the key [`secret`](Self::secret). It is never 0.
    /// Packets name it, so only the peer learns it, and whoever sees its packets.
    pub fn incarnation_for(&self, peer: Gid) -> u64 {
        let mut text = [0; 24];
        text[..8].copy_from_slice(&self.incarnation.to_le_bytes());
        text[8..].copy_from_slice(&peer.0);
        self.hash(&text).max(1)
    }

    /// Creates the source of the device's randomness.
    pub(crate) fn rng(&self) -> fastrand::Rng {
        let mut text = [0; 16];
        text[..8].copy_from_slice(&self.incarnation.to_le_bytes());
        text[8..].copy_from_slice(&self.seed.to_le_bytes());
        fastrand::Rng::with_seed(self.hash(&text))
    }

    /// Returns a number that nobody can guess without the secret. Each use has texts of a length of its own, so that no
    /// two uses share a number.
    fn hash(&self, text: &[u8]) -> u64 {
        let hash = blake3::keyed_hash(&self.secret.0, text);
        u64::from_le_bytes(std::array::from_fn(|i| hash.as_bytes()[i]))
    }

    /// Checks that a device can have this configuration.
    ///
    /// # Errors
    /// The first invalid value.
    pub fn check(&self) -> Result<(), ControlError> {
        let check = |what, value: u64, good: bool, expected| {
            if good { Ok(()) } else { Err(ControlError::Invalid { what, value, expected }) }
        };
        let mtu = u64::from(self.attributes.mtu);
        check("mtu", mtu, (u64::from(MIN_STRIDE)..=60_000).contains(&mtu), "64 to 60000 bytes")?;
        check("incarnation", self.incarnation, self.incarnation != 0, "a positive number")?;
        check("max_sq_bytes", self.max_sq_bytes.into(), self.max_sq_bytes >= 128, "room for a WQE of 128 bytes")?;
        check("max_tx_batch", self.max_tx_batch.into(), self.max_tx_batch >= 2, "room for a WQE of 128 bytes")?;
        check("max_qp", self.attributes.max_qp.into(), (1..=1 << 14).contains(&self.attributes.max_qp), "1 to 16384")?;
        check("max_cqe", self.attributes.max_cqe.into(), self.attributes.max_cqe.is_power_of_two(), "a power of two")?;
        check("sub_cqs", self.sub_cqs.into(), (1..=64).contains(&self.sub_cqs), "1 to 64")?;
        check("paths", self.paths.into(), (1..=64).contains(&self.paths), "1 to 64")?;
        let hour = Duration::from_secs(3600);
        let time = |what, value: Duration, range: RangeInclusive<Duration>, expected| {
            check(what, value.as_nanos() as u64, range.contains(&value), expected)
        };
        let some = Duration::from_nanos(1);
        time("min_rto", self.min_rto, some..=self.max_rto, "a positive number of ns, at most max_rto")?;
        time("max_rto", self.max_rto, some..=hour, "a positive number of ns, at most an hour")?;
        time("initial_rto", self.initial_rto, some..=hour, "a positive number of ns, at most an hour")?;
        time("peer_timeout", self.peer_timeout, some..=hour, "a positive number of ns, at most an hour")?;
        time("rnr_delay", self.rnr_delay, Duration::ZERO..=hour, "a number of ns, at most an hour")
    }

    /// Returns the configuration of a device at `gid` like those of a p5en.
    pub fn new(gid: Gid) -> Self {
        Self::of(Profile::P5en, gid)
    }

    /// Returns the configuration of a device at `gid` like those of an instance type.
    ///
    /// | value | source |
    /// | --- | --- |
    /// | Gb/s | the vendor's instance pages |
    /// | part number | `ibv_devinfo` in public reports: p4d 0xefa0, p5en 0xefa2; p5 0xefa1 and p6-b200 0xefa3 *assumed* |
    /// | `max_qp` 256, `max_cq` 512, `max_cqe` 32768, `max_pd` 256, `max_ah` 1024, receives 32768, WQEs 4096, buffers 2 and 3, MTU 8928, RDMA 1 GiB, inline 32 | a 0xefa1 device as UCX keeps it for its tests (`contrib/ibmock/config.c`); that the others have the same is *assumed* |
    /// | `max_mr` 262144 | the same; this device has 65536, since its lkeys tell no more apart |
    /// | RDMA read and write | all but p4d, which has no write: the vendor's table of instance types |
    /// | inline of 80 bytes, unsolicited writes, 64-bit request ids | from 0xefa2 on; *assumed* (they must be asked for) |
    /// | completion counters | p5en and p6-b200, where the vendor's NCCL plugin uses them (`platform-aws.cpp`); their number is *assumed* |
    /// | sub-queues | 0xefa0 alone has several (libfabric, `efa_device_use_sub_cq`); that they are 4 is *assumed* |
    /// | `max_tx_batch`, regions, paths, all times | *assumed* |
    pub fn of(profile: Profile, gid: Gid) -> Self {
        let (vendor_part_id, link_gbps) = match profile {
            Profile::P4d => (0xefa0, 100),
            Profile::P5 => (0xefa1, 100),
            Profile::P5en => (0xefa2, 200),
            Profile::P6B200 => (0xefa3, 400),
        };
        let newer = matches!(profile, Profile::P5en | Profile::P6B200);
        let attributes = DeviceAttributes {
            gid,
            mtu: 8928,
            max_rdma_bytes: 1 << 30,
            max_sq_sge: 2,
            max_rq_sge: 3,
            inline_bytes: 32,
            inline_bytes_ex: if newer { 80 } else { 32 },
            max_cqe: 32768,
            max_qp: 256,
            max_counters: if newer { 1024 } else { 0 },
            rdma_read: true,
            rdma_write: profile != Profile::P4d,
            unsolicited_write_recv: newer,
        };
        Self {
            attributes,
            incarnation: 1,
            secret: Secret::default(),
            seed: 1,
            vendor_part_id,
            link_gbps,
            max_sq_bytes: 4096 * 64,
            max_rq_descs: 32768,
            max_tx_batch: 64,
            max_cq: 512,
            max_mr: 65536,
            max_pd: 256,
            max_ah: 1024,
            sub_cqs: if profile == Profile::P4d { 4 } else { 1 },
            req_id_64: false,
            loopback: false,
            shareable_rings: false,
            paths: 4,
            initial_rto: Duration::from_millis(20),
            min_rto: Duration::from_millis(1),
            max_rto: Duration::from_millis(500),
            peer_timeout: Duration::from_secs(5),
            rnr_delay: Duration::from_micros(200),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_life_is_called_differs_by_peer_by_life_and_by_secret_and_no_secret_is_shown() {
        let config = DeviceConfig::new(Gid::local(0));
        let other_life = DeviceConfig { incarnation: 2, ..config.clone() };
        let other_secret = DeviceConfig { secret: Secret([0xab; 32]), ..config.clone() };
        let called = |config: &DeviceConfig, peer| config.incarnation_for(Gid::local(peer));
        let names = [
            called(&config, 1),
            called(&config, 2),
            called(&other_life, 1),
            called(&other_secret, 1),
            config.rng().u64(..),
            other_secret.rng().u64(..),
        ];
        assert_eq!(names.iter().collect::<std::collections::HashSet<_>>().len(), names.len());
        assert_eq!(called(&config, 1), called(&config.clone(), 1));
        let shown = format!("{other_secret:?} {other_secret:#?}").to_lowercase();
        assert!(!shown.contains("171") && !shown.contains("abab"), "{shown}");
    }

    #[test]
    fn every_profile_is_a_possible_device_and_is_known_by_its_name() {
        for profile in Profile::ALL {
            let config = DeviceConfig::of(profile, Gid::local(0));
            assert_eq!(config.check(), Ok(()));
            assert_eq!(profile.to_string().parse(), Ok(profile));
            assert!(crate::Device::new(config).alloc_pd().is_ok());
        }
        assert_eq!("p3".parse::<Profile>(), Err("p4d, p5, p5en or p6-b200".to_string()));
    }
}
