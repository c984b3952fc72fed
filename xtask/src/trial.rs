//! `cargo xtask trial`: tests that the README's two commands need only git, gcc and rustup.
//!
//! The chore creates a minimal Debian with these three below `target/trial`, clones the last commit of this checkout in
//! it, and runs both commands there. They run as a user who is not root, each in its own mount and PID namespaces with
//! the new root. The machine lends what a user of rustup would have: rustup and the pinned toolchain, without the
//! sources of the standard library. The network is the machine's, and so is the configuration of package clients
//! (variables, certificates, configuration files of cargo and pip).

use crate::apt::{Archive, acquire_settings, run};
use crate::common::{remove, target};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

/// The packages that the README names, without rustup. gcc recommends the C library's headers, and git recommends
/// certificates.
const PACKAGES: &str = "--include=git,gcc,libc6-dev,ca-certificates";

/// The two commands.
const COMMANDS: [&str; 2] = ["cargo xtask demo", "CI=true cargo xtask test"];

/// The user's home in the root.
const HOME: &str = "/home/trial";

/// The programs as which rustup acts when it is called by their names.
const PROXIES: &[&str] = &["cargo", "rustc", "rustdoc", "rustfmt", "cargo-fmt", "cargo-clippy", "clippy-driver"];

/// The certificates that Debian's programs trust.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// A script that creates the mounts, becomes the user and runs a command. Its arguments are the root, the toolchain and
/// its place in the root, the checkout, and the command. The command runs under a shell, because the first process of a
/// PID namespace must reap orphans.
const ENTER: &str = r#"set -eu
root=$1 toolchain=$2 place=$1/$3 checkout=$4 command=$5
shift 5
mount --bind "$root" "$root"
cd "$root"
mount --bind "$toolchain" "$place"
mount -o remount,bind,ro "$place"
if [ -d "$place/lib/rustlib/src" ]; then mount -t tmpfs none "$place/lib/rustlib/src"; fi
mount --bind "$checkout" mnt
mount -o remount,bind,ro mnt
mount --rbind /dev dev
mount -t sysfs -o ro none sys
mount -t proc none proc
mkdir -p before
pivot_root . before
cd /
umount --lazy before
exec setpriv --reuid 1000 --regid 1000 --clear-groups --inh-caps=-all env --ignore-environment "$@" sh -c "$command
exit \$?"
"#;

/// A minimal root.
struct Root {
    folder: PathBuf,
    toolchain: Toolchain,
    /// The checkout to try.
    checkout: PathBuf,
    /// The environment of the commands.
    variables: Vec<String>,
}

/// The toolchain that rustup uses on this machine.
struct Toolchain {
    name: String,
    folder: PathBuf,
}

/// Creates a root, runs both commands in it and prints how they ended.
pub(crate) fn main(keep: bool) -> Result<()> {
    ensure!(
        fs::metadata("/proc/self")?.uid() == 0,
        "making a root takes root: as root, or in a container whose root may mount, `cargo xtask trial`"
    );
    let folder = target().join("trial");
    remove(&folder)?;
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let root = Root::make(&fs::canonicalize(&folder)?)?;
    let cloned = root.run("git clone --quiet /mnt efa-direct")?;
    ensure!(cloned.success(), "the checkout was not cloned: {cloned}");
    let mut outcomes = Vec::new();
    for command in COMMANDS {
        println!("\n━━ {command} ━━");
        outcomes.push((command, root.run(&format!("cd efa-direct\n{command}"))?));
    }
    if keep {
        println!("\nthe root stays in {}", folder.display());
    } else {
        remove(&folder)?;
    }
    println!();
    for (command, status) in &outcomes {
        println!("in a minimal Debian: `{command}`: {status}");
    }
    match outcomes.iter().all(|(_, status)| status.success()) {
        true => Ok(()),
        false => bail!("git, gcc and rustup were not enough, or a check failed: see above"),
    }
}

impl Root {
    fn make(folder: &Path) -> Result<Self> {
        let (archive, security) = Archive::of_this_machine()?;
        let toolchain = Toolchain::of_this_machine()?;
        println!("making a minimal Debian {} in {}", archive.suite, folder.display());
        let mut debootstrap = Command::new("debootstrap");
        debootstrap.args(["--variant=minbase", PACKAGES]).args(archive.keyring().map(|key| format!("--keyring={key}")));
        debootstrap.args([&archive.suite]).arg(folder).arg(archive.uri());
        run(&mut debootstrap).context("debootstrap makes the root; Debian's package of that name has it")?;

        let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("this package is in a workspace")?;
        let checkout = fs::canonicalize(checkout)?;
        let root = Self { folder: folder.into(), toolchain, checkout, variables: variables(std::env::vars()) };
        let sources = [Some(archive), security].into_iter().flatten();
        for key in sources.clone().filter_map(|archive| archive.keyring().map(PathBuf::from)) {
            root.lend(&key, &key)?;
        }
        fs::write(root.at("/etc/apt/sources.list"), sources.map(|archive| archive.line()).collect::<String>())?;
        fs::write(root.at("/etc/apt/apt.conf.d/90machine"), acquire_settings()?)?;
        root.lend_configuration()?;
        // The checkout belongs to another user.
        fs::write(root.at("/etc/gitconfig"), "[safe]\n\tdirectory = *\n")?;
        root.add_user()?;
        Ok(root)
    }

    /// Returns the path outside of the root of a path in the root.
    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.folder.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Copies a file of the machine, if it exists.
    fn lend(&self, file: &Path, to: &Path) -> Result<()> {
        if !file.is_file() {
            return Ok(());
        }
        let to = self.at(to);
        fs::create_dir_all(to.parent().unwrap_or(&to))?;
        fs::copy(file, &to).with_context(|| format!("copying {} to {}", file.display(), to.display())).map(drop)
    }

    /// Copies the configuration of name resolution and of package clients.
    fn lend_configuration(&self) -> Result<()> {
        let named = self.variables.iter().filter_map(|variable| Some(Path::new(variable.split_once('=')?.1)));
        let fixed = ["/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", CERTIFICATES].map(Path::new);
        fixed.into_iter().chain(named.filter(|path| path.is_absolute())).try_for_each(|file| self.lend(file, file))?;
        let home = PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?);
        for file in [".pip/pip.conf", ".config/pip/pip.conf"] {
            self.lend(&home.join(file), &Path::new(HOME).join(file))?;
        }
        let cargo = std::env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from);
        for file in ["config.toml", "config"] {
            self.lend(&cargo.join(file), &Path::new(HOME).join(".cargo").join(file))?;
        }
        Ok(())
    }

    /// Adds a user who has rustup.
    fn add_user(&self) -> Result<()> {
        for (file, line) in [
            ("/etc/passwd", format!("trial:x:1000:1000::{HOME}:/bin/sh\n")),
            ("/etc/group", "trial:x:1000:\n".to_string()),
        ] {
            let text = fs::read_to_string(self.at(file))?;
            fs::write(self.at(file), text + &line)?;
        }
        let home = self.at(HOME);
        let bin = home.join(".cargo/bin");
        fs::create_dir_all(&bin)?;
        fs::create_dir_all(self.at(self.toolchain.place()))?;
        fs::copy(Toolchain::rustup()?, bin.join("rustup")).context("copying rustup")?;
        PROXIES.iter().try_for_each(|proxy| symlink("rustup", bin.join(proxy)))?;
        let settings = format!("version = \"12\"\ndefault_toolchain = \"{}\"\n", self.toolchain.name);
        fs::write(home.join(".rustup/settings.toml"), settings)?;
        run(Command::new("chown").args(["--recursive", "1000:1000"]).arg(&home)).map(drop)
    }

    /// Runs a shell command in the user's home.
    fn run(&self, command: &str) -> Result<ExitStatus> {
        let mut unshare = Command::new("unshare");
        unshare.args([
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--propagation",
            "private",
            "sh",
            "-c",
            ENTER,
            "sh",
        ]);
        unshare.arg(&self.folder).arg(&self.toolchain.folder).arg(self.toolchain.place()).arg(&self.checkout);
        unshare.arg(format!("cd {HOME}\n{command}")).args(&self.variables);
        unshare.status().context("starting unshare, of Debian's util-linux")
    }
}

impl Toolchain {
    fn of_this_machine() -> Result<Self> {
        let checkout = env!("CARGO_MANIFEST_DIR");
        let name = run(Command::new(Self::rustup()?).args(["show", "active-toolchain"]).current_dir(checkout))?;
        let name = name.split_whitespace().next().context("rustup names no toolchain")?.to_string();
        let sysroot = run(Command::new("rustc").args(["--print", "sysroot"]).current_dir(checkout))?;
        Ok(Self { name, folder: fs::canonicalize(sysroot.trim()).context("finding the toolchain")? })
    }

    /// Finds the program rustup.
    fn rustup() -> Result<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut found = std::env::split_paths(&path).map(|folder| folder.join("rustup")).filter(|file| file.is_file());
        found
            .next()
            .context("rustup is not in PATH: the trial lends it to the root, and the toolchain that it installed")
    }

    /// Returns its path in the root, without the leading `/`.
    fn place(&self) -> String {
        format!("{}/.rustup/toolchains/{}", HOME.trim_start_matches('/'), self.name)
    }
}

/// Returns a user's environment, with the machine's variables that say how to reach registries.
fn variables(machine: impl Iterator<Item = (String, String)>) -> Vec<String> {
    const LENT: &[&str] = &[
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTRIES_",
        "CARGO_SOURCE_",
        "CURL_CA_BUNDLE",
        "PIP_",
        "REQUESTS_CA_BUNDLE",
        "RUSTUP_AUTO_INSTALL",
        "SSL_CERT_FILE",
    ];
    // A name that ends with an underscore is a prefix.
    let is_lent = |name: &str| {
        let is = |entry: &&str| name == *entry || entry.ends_with('_') && name.starts_with(*entry);
        LENT.iter().any(is) || name.to_ascii_lowercase().ends_with("_proxy")
    };
    let own = [
        format!("HOME={HOME}"),
        "USER=trial".into(),
        format!("PATH={HOME}/.cargo/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"),
        "LANG=C.UTF-8".into(),
    ];
    let lent = machine.filter(|(name, _)| is_lent(name)).map(|(name, value)| format!("{name}={value}"));
    own.into_iter().chain(lent).collect()
}

#[cfg(test)]
mod tests {
    use super::{HOME, variables};

    #[test]
    fn a_trial_is_lent_how_to_reach_registries_and_nothing_of_the_outer_build() {
        let machine = [
            ("CARGO_MANIFEST_DIR", "/x"),
            ("CARGO_NET_OFFLINE", "false"),
            ("HOME", "/root"),
            ("PIP_CERT", "/c.crt"),
            ("RUSTUP_TOOLCHAIN", "nightly"),
            ("RUSTUP_HOME", "/r"),
            ("EFA_PTX_TOOLCHAIN", "nightly"),
            ("https_proxy", "http://proxy.example"),
        ];
        let given = variables(machine.into_iter().map(|(name, value)| (name.into(), value.into())));
        let lent = &given[4..];
        assert_eq!(lent, ["CARGO_NET_OFFLINE=false", "PIP_CERT=/c.crt", "https_proxy=http://proxy.example"]);
        assert!(given.contains(&format!("HOME={HOME}")) && given.iter().all(|variable| !variable.contains("/root")));
    }
}
