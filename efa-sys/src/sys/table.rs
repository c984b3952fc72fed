//! The functions that the two libraries export, looked up when they are loaded.

use super::load::File;
use super::version::Version;
use super::*;
use crate::error::Error;
use std::ffi::{CStr, OsStr, c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::sync::OnceLock;

/// Defines a table of function pointers. Each line has the release of rdma-core that first had the function, and its
/// signature. The compiler compares the signature with that of the bindings.
macro_rules! table {
    (
        $(#[$doc:meta])* $table:ident, found by $probe:literal;
        $($release:literal: fn $name:ident($($arg:ident: $type:ty),*) $(-> $ret:ty)?;)*
    ) => {
        $(#[$doc])*
        pub struct $table {
            file: File,
            $($name: Option<unsafe extern "C" fn($($type),*) $(-> $ret)?>,)*
        }

        impl $table {
            /// Loads the library by its path, or by a name that the loader searches for, and looks up its functions. It
            /// is never unloaded.
            ///
            /// # Errors
            /// [`Error::NoLibrary`] if it cannot be loaded. A missing function is an error of that function's method
            /// only.
            ///
            /// # Safety
            /// As for [`Libraries::open`].
            pub unsafe fn open(name: impl AsRef<OsStr>) -> Result<Self, Error> {
                // SAFETY: the caller is responsible for what the library's initializers do.
                let file = unsafe { File::open(name.as_ref(), $probe) }?;
                $(
                    let symbol = file.symbol(c_name(concat!(stringify!($name), "\0")));
                    // SAFETY: the caller guarantees that a function of this name is the one that the headers declare.
                    // The `const` below compares the signature with the headers'. The address is not null, and it stays
                    // valid because the file is never unloaded.
                    let $name = symbol.map(|symbol| unsafe { std::mem::transmute(symbol) });
                )*
                Ok(Self { file, $($name),* })
            }

            /// Returns the path of the library's file.
            pub fn path(&self) -> &Path {
                self.file.path()
            }

            /// Returns the release of rdma-core that the library belongs to, if its file name shows it.
            pub fn version(&self) -> Option<Version> {
                self.file.version()
            }

            $(
                #[doc = concat!("Returns `", stringify!($name), "`, which came with rdma-core ", $release, ".")]
                ///
                /// # Errors
                /// [`Error::TooOld`] if the library does not have it.
                #[inline]
                pub fn $name(&self) -> Result<unsafe extern "C" fn($($type),*) $(-> $ret)?, Error> {
                    self.$name.ok_or_else(|| self.file.lacks(stringify!($name), $release))
                }
            )*
        }

        // The signatures above must be those of the headers. Only the compiler looks at the declarations; nothing is
        // linked.
        $(const _: unsafe extern "C" fn($($type),*) $(-> $ret)? = bindings::declared::$name;)*
    };
}

fn c_name(name: &'static str) -> &'static CStr {
    CStr::from_bytes_with_nul(name.as_bytes()).expect("the macro appends a zero")
}

// Releases: `debian/libibverbs1.symbols` of rdma-core 65. 12 is rdma-core's first release; it also stands for
// everything older.
table! {
    /// The functions that libibverbs exports.
    Verbs, found by c"ibv_open_device";
    12: fn ibv_get_device_list(num_devices: *mut c_int) -> *mut *mut ibv_device;
    12: fn ibv_free_device_list(list: *mut *mut ibv_device);
    12: fn ibv_get_device_name(device: *mut ibv_device) -> *const c_char;
    12: fn ibv_get_device_guid(device: *mut ibv_device) -> __be64;
    30: fn ibv_get_device_index(device: *mut ibv_device) -> c_int;
    12: fn ibv_open_device(device: *mut ibv_device) -> *mut ibv_context;
    12: fn ibv_close_device(context: *mut ibv_context) -> c_int;
    12: fn ibv_fork_init() -> c_int;
    12: fn ibv_query_device(context: *mut ibv_context, attr: *mut ibv_device_attr) -> c_int;
    12: fn ibv_query_port(context: *mut ibv_context, port: u8, attr: *mut _compat_ibv_port_attr) -> c_int;
    62: fn ibv_query_port_speed(context: *mut ibv_context, port: u32, speed: *mut u64) -> c_int;
    12: fn ibv_query_gid(context: *mut ibv_context, port: u8, index: c_int, gid: *mut ibv_gid) -> c_int;
    32: fn _ibv_query_gid_ex(
        context: *mut ibv_context, port: u32, index: u32, entry: *mut ibv_gid_entry, flags: u32, size: usize
    ) -> c_int;
    12: fn ibv_query_pkey(context: *mut ibv_context, port: u8, index: c_int, pkey: *mut __be16) -> c_int;
    12: fn ibv_get_async_event(context: *mut ibv_context, event: *mut ibv_async_event) -> c_int;
    12: fn ibv_ack_async_event(event: *mut ibv_async_event);
    12: fn ibv_alloc_pd(context: *mut ibv_context) -> *mut ibv_pd;
    12: fn ibv_dealloc_pd(pd: *mut ibv_pd) -> c_int;
    12: fn ibv_reg_mr(pd: *mut ibv_pd, addr: *mut c_void, length: usize, access: c_int) -> *mut ibv_mr;
    28: fn ibv_reg_mr_iova2(
        pd: *mut ibv_pd, addr: *mut c_void, length: usize, iova: u64, access: c_uint
    ) -> *mut ibv_mr;
    34: fn ibv_reg_dmabuf_mr(
        pd: *mut ibv_pd, offset: u64, length: usize, iova: u64, fd: c_int, access: c_int
    ) -> *mut ibv_mr;
    12: fn ibv_dereg_mr(mr: *mut ibv_mr) -> c_int;
    12: fn ibv_create_ah(pd: *mut ibv_pd, attr: *mut ibv_ah_attr) -> *mut ibv_ah;
    12: fn ibv_destroy_ah(ah: *mut ibv_ah) -> c_int;
    12: fn ibv_create_comp_channel(context: *mut ibv_context) -> *mut ibv_comp_channel;
    12: fn ibv_destroy_comp_channel(channel: *mut ibv_comp_channel) -> c_int;
    12: fn ibv_get_cq_event(channel: *mut ibv_comp_channel, cq: *mut *mut ibv_cq, context: *mut *mut c_void) -> c_int;
    12: fn ibv_ack_cq_events(cq: *mut ibv_cq, count: c_uint);
    12: fn ibv_create_cq(
        context: *mut ibv_context, entries: c_int, cq_context: *mut c_void, channel: *mut ibv_comp_channel,
        vector: c_int
    ) -> *mut ibv_cq;
    12: fn ibv_destroy_cq(cq: *mut ibv_cq) -> c_int;
    12: fn ibv_create_qp(pd: *mut ibv_pd, attr: *mut ibv_qp_init_attr) -> *mut ibv_qp;
    12: fn ibv_modify_qp(qp: *mut ibv_qp, attr: *mut ibv_qp_attr, mask: c_int) -> c_int;
    12: fn ibv_query_qp(qp: *mut ibv_qp, attr: *mut ibv_qp_attr, mask: c_int, init: *mut ibv_qp_init_attr) -> c_int;
    36: fn ibv_query_qp_data_in_order(qp: *mut ibv_qp, op: ibv_wr_opcode, flags: u32) -> c_int;
    12: fn ibv_destroy_qp(qp: *mut ibv_qp) -> c_int;
    24: fn ibv_qp_to_qp_ex(qp: *mut ibv_qp) -> *mut ibv_qp_ex;
    65: fn _ibv_query_comp_cntr_caps(context: *mut ibv_context, caps: *mut ibv_comp_cntr_caps, size: usize) -> c_int;
    65: fn ibv_create_comp_cntr(context: *mut ibv_context, attr: *mut ibv_comp_cntr_init_attr) -> *mut ibv_comp_cntr;
    65: fn ibv_destroy_comp_cntr(counter: *mut ibv_comp_cntr) -> c_int;
    65: fn ibv_set_comp_cntr(counter: *mut ibv_comp_cntr, value: u64) -> c_int;
    65: fn ibv_set_err_comp_cntr(counter: *mut ibv_comp_cntr, value: u64) -> c_int;
    65: fn ibv_inc_comp_cntr(counter: *mut ibv_comp_cntr, amount: u64) -> c_int;
    65: fn ibv_inc_err_comp_cntr(counter: *mut ibv_comp_cntr, amount: u64) -> c_int;
    65: fn ibv_read_comp_cntr(counter: *mut ibv_comp_cntr, value: *mut u64) -> c_int;
    65: fn ibv_read_err_comp_cntr(counter: *mut ibv_comp_cntr, value: *mut u64) -> c_int;
    65: fn ibv_qp_attach_comp_cntr(
        qp: *mut ibv_qp, counter: *mut ibv_comp_cntr, attr: *mut ibv_qp_attach_comp_cntr_attr
    ) -> c_int;
    12: fn ibv_wc_status_str(status: ibv_wc_status) -> *const c_char;
    12: fn ibv_event_type_str(event: ibv_event_type) -> *const c_char;
    12: fn ibv_node_type_str(node_type: ibv_node_type) -> *const c_char;
    12: fn ibv_port_state_str(state: ibv_port_state) -> *const c_char;
}

// Releases: `debian/ibverbs-providers.symbols` of rdma-core 65.
table! {
    /// The functions that libefa exports.
    Efa, found by c"efadv_query_device";
    26: fn efadv_query_device(context: *mut ibv_context, attr: *mut efadv_device_attr, len: u32) -> c_int;
    26: fn efadv_query_ah(ah: *mut ibv_ah, attr: *mut efadv_ah_attr, len: u32) -> c_int;
    50: fn efadv_query_mr(mr: *mut ibv_mr, attr: *mut efadv_mr_attr, len: u32) -> c_int;
    24: fn efadv_create_driver_qp(pd: *mut ibv_pd, attr: *mut ibv_qp_init_attr, driver_type: u32) -> *mut ibv_qp;
    26: fn efadv_create_qp_ex(
        context: *mut ibv_context, attr: *mut ibv_qp_init_attr_ex, efa_attr: *mut efadv_qp_init_attr, len: u32
    ) -> *mut ibv_qp;
    59: fn efadv_query_qp_wqs(qp: *mut ibv_qp, sq: *mut efadv_wq_attr, rq: *mut efadv_wq_attr, len: u32) -> c_int;
    63: fn efadv_get_max_sq_depth(context: *mut ibv_context, attr: *mut efadv_sq_depth_attr, len: u32) -> c_int;
    63: fn efadv_get_max_rq_depth(context: *mut ibv_context, attr: *mut efadv_rq_depth_attr, len: u32) -> c_int;
    64: fn efadv_qp_from_ibv_qp_ex(qp: *mut ibv_qp_ex) -> *mut efadv_qp;
    43: fn efadv_create_cq(
        context: *mut ibv_context, attr: *mut ibv_cq_init_attr_ex, efa_attr: *mut efadv_cq_init_attr, len: u32
    ) -> *mut ibv_cq_ex;
    43: fn efadv_cq_from_ibv_cq_ex(cq: *mut ibv_cq_ex) -> *mut efadv_cq;
    59: fn efadv_query_cq(cq: *mut ibv_cq, attr: *mut efadv_cq_attr, len: u32) -> c_int;
    65: fn efadv_create_comp_cntr(
        context: *mut ibv_context, attr: *mut ibv_comp_cntr_init_attr, efa_attr: *mut efadv_comp_cntr_init_attr,
        len: u32
    ) -> *mut ibv_comp_cntr;
}

/// Both libraries, loaded.
pub struct Libraries {
    /// libibverbs.
    pub verbs: Verbs,
    efa: Result<Efa, Error>,
}

impl Libraries {
    /// Loads both libraries by their paths, or by names that the loader searches for. They are never unloaded. libefa
    /// must be the file that libibverbs loads as its provider: a second copy does not know the devices of the first.
    ///
    /// # Errors
    /// libibverbs cannot be loaded. A missing libefa is an error of [`efa`](Self::efa).
    ///
    /// # Safety
    /// Loading a file runs its initializers, and handles call the functions that it has under the names of libibverbs
    /// and libefa. So each file must be that library, of any release of rdma-core, or behave as rdma-core's headers and
    /// manual pages specify. The same holds for the providers that libibverbs loads.
    ///
    /// ```compile_fail,E0133
    /// efa_sys::sys::Libraries::open("/tmp/whatever.so", "/tmp/whatever.so");
    /// ```
    pub unsafe fn open(verbs: impl AsRef<OsStr>, efa: impl AsRef<OsStr>) -> Result<Self, Error> {
        // SAFETY: the caller guarantees that both files are, or behave like, rdma-core's libraries.
        unsafe { Ok(Self { verbs: Verbs::open(verbs)?, efa: Efa::open(efa) }) }
    }

    /// Returns the machine's own libraries. The first call loads them.
    ///
    /// # Errors
    /// libibverbs cannot be loaded.
    pub fn get() -> Result<&'static Self, Error> {
        static LIBRARIES: OnceLock<Result<Libraries, Error>> = OnceLock::new();
        // SAFETY: the system's loader searches for these names, which are the `SONAME`s of rdma-core's two libraries,
        // in the directories that the administrator or the process's starter chose. Whoever can replace files there
        // controls the process anyway, because the C library is found in the same way. The initializers of rdma-core's
        // libraries only register providers.
        let open = || unsafe { Self::open("libibverbs.so.1", "libefa.so.1") };
        LIBRARIES.get_or_init(open).as_ref().map_err(Clone::clone)
    }

    /// Returns libefa.
    ///
    /// # Errors
    /// libefa cannot be loaded.
    pub fn efa(&self) -> Result<&Efa, Error> {
        self.efa.as_ref().map_err(Clone::clone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_missing_library_says_what_to_install() {
        // SAFETY: there is no such file, so no initializer runs.
        let error = unsafe { Verbs::open("libibverbs-is-not-here.so.1") }.err().expect("there is no such library");
        let text = error.to_string();
        assert!(text.contains("libibverbs-is-not-here.so.1 cannot be loaded"), "{text}");
        assert!(
            text.contains("cannot open shared object file") && text.contains("Debian, Ubuntu: libibverbs1"),
            "{text}"
        );
        // SAFETY: libc is loaded already and has no functions of libibverbs; there is no such libefa.
        let both = unsafe { Libraries::open("libc.so.6", "libefa-is-not-here.so.1") };
        let both = both.expect("libc stands in for libibverbs");
        let text = both.efa().err().expect("there is no such library").to_string();
        assert!(text.contains("Debian, Ubuntu: ibverbs-providers"), "{text}");
    }

    #[test]
    fn an_older_library_does_what_it_can_and_names_itself_for_the_rest() {
        let dir = std::env::temp_dir().join(format!("efa-sys-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (source, file, link) = (dir.join("old.c"), dir.join("libefa.so.1.1.39.2"), dir.join("libefa.so.1"));
        std::fs::write(&source, "int efadv_query_device(void *c, void *a, unsigned n) { return (int)n; }").unwrap();
        let status = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&file, &source]).status().unwrap();
        assert!(status.success());
        std::os::unix::fs::symlink(&file, &link).unwrap();
        // SAFETY: the library has no initializers, and its only function reads none of its pointers.
        let efa = unsafe { Efa::open(&link) }.unwrap();
        std::fs::remove_dir_all(&dir).unwrap();

        assert_eq!(efa.version(), Some(Version { major: 39, minor: 2 }));
        let query = efa.efadv_query_device().unwrap();
        // SAFETY: the function reads none of its pointers.
        assert_eq!(unsafe { query(std::ptr::null_mut(), std::ptr::null_mut(), 7) }, 7);
        let text = efa.efadv_query_qp_wqs().unwrap_err().to_string();
        let expected = "libefa.so.1.1.39.2 of rdma-core 39.2 has no efadv_query_qp_wqs, which came with rdma-core 59: \
                        install rdma-core 59 or newer";
        assert!(text.ends_with(expected), "{text}");
    }

    #[test]
    fn a_library_of_no_known_release_says_so() {
        // SAFETY: libc is loaded already and has no functions of libibverbs.
        let verbs = unsafe { Verbs::open("libc.so.6") }.unwrap();
        let text = verbs.ibv_open_device().unwrap_err().to_string();
        assert!(text.contains("of an unknown release has no ibv_open_device, which came with rdma-core 12"), "{text}");
    }
}
