//! Quotas: limits of what one program may have of a node, so that it leaves room for others.

use crate::errno::{Errno, Outcome, refuse};
use crate::kind::Kind;
use parking_lot::Mutex;
use rustix::process::{Resource, getrlimit};
use std::collections::HashMap;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Weak};

/// The limits of what one program may have of a node at the same time. The node logs each refusal with the numbers.
///
/// A program is the process that opened a device. Processes that it forks may use that device and are counted with it.
/// A forked process that opens a device itself is another program with limits of its own, as with the kernel's limits
/// for processes. So quotas stop one program from harming others, but not many programs together.
///
/// Quotas can be parsed from text such as `opens=64,mapped=16g`. The keys are the names of the fields, and missing keys
/// keep their defaults. `k`, `m`, `g` and `t` after a number are powers of 1024.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Quotas {
    /// The number of open devices; 128 by default. Each takes a thread of the node. When they are used up, `open` fails
    /// with `EMFILE`.
    pub opens: u64,
    /// The number of the node's descriptors; 8192 by default, and never more than half of what the node's process may
    /// have (`ulimit -n`). An open device takes four, a queue pair three, a completion queue two, a completion channel
    /// one, a DMA-BUF one, and each process with registered memory one. When they are used up, commands fail with
    /// `EMFILE`.
    pub descriptors: u64,
    /// The share of a device's objects of each kind, in percent (0 to 100); 90 by default. With 100, only the device's
    /// own limit holds. When they are used up, commands fail with `ENOMEM`, as they do if the device has no more.
    pub objects: u64,
    /// The number of bytes of DMA-BUFs and memory files that the node maps; half of the machine's memory by default.
    /// Their pages may be charged to the node. When they are used up, commands fail with `ENOMEM`.
    pub mapped: u64,
    /// The number of bytes of the program's own memory that are registered; unlimited by default, because a node pins
    /// nothing. Set it to test a program's behaviour under `ulimit -l`, against which the kernel's driver counts these
    /// bytes. When they are used up, commands fail with `ENOMEM`.
    pub registered: u64,
}

impl Default for Quotas {
    fn default() -> Self {
        let machine = rustix::system::sysinfo();
        let bytes = u64::from(machine.mem_unit).saturating_mul(machine.totalram as u64);
        Self { opens: 128, descriptors: 8192, objects: 90, mapped: bytes / 2, registered: u64::MAX }
    }
}

impl FromStr for Quotas {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut quotas = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').ok_or(format!("{part}: a quota is written KEY=NUMBER"))?;
            let number = number(value).ok_or(format!("{part}: {value} is no number"))?;
            let field = match key {
                "opens" => &mut quotas.opens,
                "descriptors" => &mut quotas.descriptors,
                "objects" if number > 100 => return Err(format!("{part}: objects are a part in percent, 0 to 100")),
                "objects" => &mut quotas.objects,
                "mapped" => &mut quotas.mapped,
                "registered" => &mut quotas.registered,
                _ => return Err(format!("{key}: quotas are opens, descriptors, objects, mapped and registered")),
            };
            *field = number;
        }
        Ok(quotas)
    }
}

/// Parses a number that may end with `k`, `m`, `g` or `t`.
fn number(text: &str) -> Option<u64> {
    let power = text.chars().last().and_then(|last| "kmgt".find(last)).map(|power| power as u32 + 1);
    let digits = if power.is_some() { &text[..text.len() - 1] } else { text };
    digits.parse::<u64>().ok()?.checked_mul(1 << (10 * power.unwrap_or(0)))
}

/// A resource with a quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Item {
    Opens,
    Descriptors,
    Mapped,
    Registered,
    /// Objects of a kind on the device with this PCI bus.
    Objects(u8, Kind),
}

impl Item {
    /// Returns the name of the resource in messages.
    fn name(self) -> String {
        match self {
            Self::Opens => "open devices".into(),
            Self::Descriptors => "descriptors of the node".into(),
            Self::Mapped => "bytes of mapped files".into(),
            Self::Registered => "bytes of registered memory".into(),
            Self::Objects(_, kind) => format!("{kind:?} objects of a device"),
        }
    }

    /// Returns the error number that a program gets when its quota is used up.
    fn errno(self) -> Errno {
        match self {
            Self::Opens | Self::Descriptors => Errno::MFILE,
            Self::Mapped | Self::Registered | Self::Objects(..) => Errno::NOMEM,
        }
    }
}

/// The accounts of all programs of a node.
pub(crate) struct Accounts {
    quotas: Quotas,
    by_process: Mutex<HashMap<i32, Weak<Account>>>,
}

impl Accounts {
    pub(crate) fn new(mut quotas: Quotas) -> Self {
        let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        quotas.descriptors = quotas.descriptors.min(most / 2);
        Self { quotas, by_process: Mutex::default() }
    }

    /// Returns the account of the process with this id, and creates it if there is none.
    pub(crate) fn of(&self, process: i32) -> Arc<Account> {
        let mut all = self.by_process.lock();
        if let Some(account) = all.get(&process).and_then(Weak::upgrade) {
            return account;
        }
        all.retain(|_, account| account.strong_count() > 0);
        let account = Arc::new(Account {
            process,
            quotas: self.quotas.clone(),
            used: Mutex::default(),
            was_refused: AtomicBool::new(false),
        });
        all.insert(process, Arc::downgrade(&account));
        account
    }
}

/// What one program has, and what it may have.
pub(crate) struct Account {
    process: i32,
    quotas: Quotas,
    used: Mutex<HashMap<Item, u64>>,
    /// `true` if the program was refused a device. This is logged once.
    was_refused: AtomicBool,
}

impl Account {
    /// Returns `true` at the first call: only the first refusal of a device is logged, so that a program that tries
    /// again and again does not fill the log.
    pub(crate) fn is_first_refusal(&self) -> bool {
        !self.was_refused.swap(true, Relaxed)
    }

    /// Counts `amount` more of a resource until the returned charge is dropped.
    ///
    /// # Errors
    /// The program's quota is used up.
    pub(crate) fn charge(self: &Arc<Self>, item: Item, amount: u64) -> Outcome<Charge> {
        let quota = match item {
            Item::Opens => self.quotas.opens,
            Item::Descriptors => self.quotas.descriptors,
            Item::Mapped => self.quotas.mapped,
            Item::Registered => self.quotas.registered,
            Item::Objects(..) => u64::MAX,
        };
        self.charge_of(item, amount, quota)
    }

    /// Counts one more object of a kind of which the device has `max`, until the returned charge is dropped.
    ///
    /// # Errors
    /// The program's quota is used up.
    pub(crate) fn charge_object(self: &Arc<Self>, device: u8, kind: Kind, max: u32) -> Outcome<Charge> {
        // With 100 percent, the device itself refuses one more, and counts the refusal.
        let all = self.quotas.objects == 100;
        let quota = if all { u64::MAX } else { (u64::from(max) * self.quotas.objects).div_ceil(100) };
        self.charge_of(Item::Objects(device, kind), 1, quota)
    }

    fn charge_of(self: &Arc<Self>, item: Item, amount: u64, quota: u64) -> Outcome<Charge> {
        let mut all = self.used.lock();
        let used = all.entry(item).or_default();
        match used.checked_add(amount).filter(|&sum| sum <= quota) {
            Some(sum) => {
                *used = sum;
                Ok(Charge { account: self.clone(), item, amount })
            }
            None => refuse(
                item.errno(),
                format!(
                    "process {} has {used} {} and asks for {amount} more: one program may have {quota} (--quota)",
                    self.process,
                    item.name()
                ),
            ),
        }
    }
}

/// An amount of a resource that is counted in a program's account until this is dropped.
pub(crate) struct Charge {
    account: Arc<Account>,
    item: Item,
    amount: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        if let Some(used) = self.account.used.lock().get_mut(&self.item) {
            *used -= self.amount;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_are_read_from_text_and_what_is_wrong_with_it_is_said() {
        let quotas: Quotas = "opens=3,mapped=2g,,objects=50".parse().unwrap();
        let expected = Quotas { opens: 3, mapped: 2 << 30, objects: 50, ..Quotas::default() };
        assert_eq!(quotas, expected);
        assert_eq!("".parse(), Ok(Quotas::default()));
        for (text, problem) in [
            ("opens", "KEY=NUMBER"),
            ("opens=x", "x is no number"),
            ("opens=k", "k is no number"),
            ("mapped=99999999999t", "is no number"),
            ("objects=101", "0 to 100"),
            ("cats=1", "quotas are opens, descriptors"),
        ] {
            let said = text.parse::<Quotas>().unwrap_err();
            assert!(said.contains(problem), "{said}");
        }
    }

    #[test]
    fn a_program_has_what_it_may_have_until_it_gives_it_back_and_others_are_counted_apart() {
        let accounts = Accounts::new(Quotas { descriptors: 5, ..Quotas::default() });
        let (one, other) = (accounts.of(1), accounts.of(2));
        assert!(Arc::ptr_eq(&one, &accounts.of(1)));
        let held = one.charge(Item::Descriptors, 3).ok().unwrap();
        let refusal = one.charge(Item::Descriptors, 3).err().unwrap();
        assert_eq!(refusal.errno, Errno::MFILE);
        let why = "process 1 has 3 descriptors of the node and asks for 3 more: one program may have 5 (--quota)";
        assert_eq!(refusal.why, why);
        assert!(other.charge(Item::Descriptors, 5).is_ok());
        assert!(one.charge(Item::Descriptors, u64::MAX).is_err(), "no sum wraps");
        drop(held);
        assert!(one.charge(Item::Descriptors, 5).is_ok());
        let objects: Vec<_> = (0..3).map(|_| one.charge_object(7, Kind::QueuePair, 2).is_ok()).collect();
        assert_eq!(objects, [true; 3], "each was given back at once");
        let held: Vec<_> = (0..3).filter_map(|_| one.charge_object(7, Kind::QueuePair, 2).ok()).collect();
        assert_eq!(held.len(), 2);
        assert!(one.charge_object(8, Kind::QueuePair, 2).is_ok(), "another device's");
    }
}
