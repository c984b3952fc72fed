//! A fake library with two devices, for tests. `fake.c` says what they do.

use efa_sys::sys::{Libraries, ibv_device_attr};
use efa_sys::{Context, DeviceList};
use std::env;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

/// Compiles the fake with these flags, loads it, and removes its file.
pub(crate) fn load(flags: &[&str]) -> Libraries {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../efa-sys/tests/fake/fake.c");
    let file = format!("libefa-fake-{}-{}.so", process::id(), COUNT.fetch_add(1, Relaxed));
    let library: PathBuf = env::temp_dir().join(file);
    let status = Command::new("cc")
        .args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(source)
        .args(flags)
        .status();
    assert!(status.expect("the fake takes a C compiler named cc").success());
    // SAFETY: those of the fake's functions that tests call behave like the two libraries', and it has no initializers.
    let libraries = unsafe { Libraries::open(&library, &library) };
    std::fs::remove_file(&library).unwrap();
    libraries.unwrap()
}

/// Returns the fake that all tests of a process share.
pub(crate) fn libraries() -> &'static Libraries {
    static FAKE: OnceLock<Libraries> = OnceLock::new();
    FAKE.get_or_init(|| load(&[]))
}

/// Opens both devices anew.
pub(crate) fn contexts() -> [Context; 2] {
    let list = DeviceList::get(libraries()).unwrap();
    let contexts: Vec<_> = list.iter().map(|device| device.open().unwrap()).collect();
    contexts.try_into().ok().unwrap()
}

/// Makes the device refuse, with this error number, to destroy any object of this context from now on.
pub(crate) fn refuse(context: &Context, errno: i32) {
    context.query_gid(1, 256 + errno as u16).unwrap();
}

/// The numbers of objects on a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ObjectCounts {
    pub(crate) pds: i32,
    pub(crate) mrs: i32,
    pub(crate) ahs: i32,
    pub(crate) cqs: i32,
    pub(crate) qps: i32,
    pub(crate) counters: i32,
    pub(crate) channels: i32,
    /// How often an object was destroyed that did not exist any more.
    pub(crate) twice: i32,
}

/// Counts the objects of this context.
pub(crate) fn object_counts(context: &Arc<Context>) -> ObjectCounts {
    let ibv_device_attr { max_pd, max_mr, max_ah, max_cq, max_ee, max_mw, max_rdd, max_mcast_grp, .. } =
        context.query_device().unwrap().orig_attr;
    ObjectCounts {
        pds: max_pd,
        mrs: max_mr,
        ahs: max_ah,
        cqs: max_cq,
        qps: max_ee,
        counters: max_mw,
        channels: max_rdd,
        twice: max_mcast_grp,
    }
}
