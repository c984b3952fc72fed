//! Generates bindings from the installed headers if feature `bindgen` is on; does nothing otherwise.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "bindgen")]
    regenerate::write();
}

#[cfg(feature = "bindgen")]
mod regenerate {
    use std::path::PathBuf;
    use std::process::Command;
    use std::{env, fs};

    const HEADERS: &str = "#include <infiniband/verbs.h>\n#include <infiniband/efadv.h>\n";

    /// The functions that bindings are generated for. bindgen adds the types that they mention.
    const FUNCTIONS: &str = "efadv_.*|_?ibv_(get_device_.*|free_device_list|open_device|close_device|query_(device|port|port_speed|gid|gid_ex|pkey|qp|\
                             qp_data_in_order|comp_cntr_caps)|(get|ack)_async_event|(alloc|dealloc)_pd|(reg|dereg|reg_dmabuf)_mr|reg_mr_iova2|\
                             (create|destroy)_(comp_channel|cq|qp|ah)|get_cq_event|ack_cq_events|modify_qp|qp_to_qp_ex|qp_attach_comp_cntr|\
                             .*_comp_cntr|fork_init|.*_str)";
    const TYPES: &str = "efadv_.*|verbs_context|ibv_(access_flags|send_flags|wc|wc_flags|qp_attr_mask|qp_create_send_ops_flags|cq_init_attr_mask|\
                         qp_init_attr_mask|qp_attach_comp_cntr_op|comp_cntr_type|create_cq_wc_flags|port_cap_flags|device_cap_flags)";
    const CONSTANTS: &str = "EFADV_.*|IBV_(SYSFS_.*|LINK_LAYER_.*|WC_STANDARD_FLAGS)";

    /// Types that the tables of operations mention and this crate never looks into.
    const OPAQUE: &str = "ibv_(flow|srq|xrcd|wq|rwq|td|dm|dmah|mw|ops|tm|tmh|counter|values|modify_cq|moderate|alloc_dm|parent|esp|ece|rx_hash|packet|\
                          rss|tso|pci|odp|cq_moderation|mr_init|buf|advise|rate|qp_rate|qp_open|open_qp|grh).*";

    /// Writes `bindings.rs` to `OUT_DIR`, from the headers in `EFA_SYS_INCLUDE` or else those that the compiler finds.
    pub(crate) fn write() {
        println!("cargo::rerun-if-env-changed=EFA_SYS_INCLUDE");
        let include = env::var("EFA_SYS_INCLUDE").ok();
        let bindings = bindgen::Builder::default()
            .header_contents("rdma-core.h", HEADERS)
            .clang_args(include.iter().map(|dir| format!("-I{dir}")))
            .clang_args(compiler_headers())
            .allowlist_function(FUNCTIONS)
            .allowlist_type(TYPES)
            .allowlist_var(CONSTANTS)
            .opaque_type(OPAQUE)
            // Their sizes differ between architectures. libc defines them for each.
            .blocklist_type("pthread_.*|__pthread.*|__atomic_wide.*|timespec")
            .raw_line("use libc::{pthread_cond_t, pthread_mutex_t};")
            .use_core()
            .prepend_enum_name(false)
            .derive_default(true)
            .derive_debug(false)
            .generate_comments(false)
            .rust_edition(bindgen::RustEdition::Edition2024)
            .generate();
        let bindings = bindings.unwrap_or_else(|error| {
            panic!(
                "bindgen: {error}\nneeded are infiniband/verbs.h and infiniband/efadv.h (Debian: libibverbs-dev, Fedora: rdma-core-devel; or \
                 name their include directory in EFA_SYS_INCLUDE) and libclang (or name its directory in LIBCLANG_PATH)"
            )
        });
        // The size assertions hold only on the architecture that they were generated on: a mutex is larger on others.
        let assertion = "#[allow(clippy::unnecessary_operation, clippy::identity_op)]\nconst _";
        let text = bindings.to_string().replace(assertion, &format!("#[cfg(target_arch = \"x86_64\")]\n{assertion}"));
        let text = set_declarations_apart(&text);
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("bindings.rs");
        fs::write(&out, text).unwrap_or_else(|error| panic!("writing {}: {error}", out.display()));
    }

    /// Moves the declarations of functions to a module of their own. They are only compared with the tables' signatures
    /// and never called, because nothing is linked.
    fn set_declarations_apart(text: &str) -> String {
        let (mut types, mut functions, mut inside) = (String::new(), String::new(), false);
        for line in text.lines() {
            inside |= line == "unsafe extern \"C\" {";
            let to = if inside { &mut functions } else { &mut types };
            to.push_str(line);
            to.push('\n');
            inside &= line != "}";
        }
        format!("{types}\npub(super) mod declared {{\nuse super::*;\n{functions}}}\n")
    }

    /// Returns the option that names the C compiler's directory of `stddef.h`, for a libclang that was installed
    /// without its own.
    fn compiler_headers() -> Option<String> {
        let answer = Command::new("cc").arg("-print-file-name=include").output().ok()?;
        let dir = String::from_utf8(answer.stdout).ok()?;
        Some(format!("-idirafter{}", dir.trim()))
    }
}
