//! A private apt, which fetches packages as the system's apt would, without changing the system.

use anyhow::{Context, Result, bail};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The keyring that signs all suites of Debian's archive.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// dpkg's list of the packages that are installed on this machine.
pub(crate) const INSTALLED: &str = "/var/lib/dpkg/status";

/// A suite of a Debian archive that a machine installs from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Archive {
    uri: String,
    /// The suite.
    pub(crate) suite: String,
    /// The keyring or key that signs the archive, if the machine's sources name one.
    signed_by: Option<String>,
}

/// A package that was fetched.
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
}

/// An apt with its own folder, its own source, and its own list of installed packages.
pub(crate) struct Apt {
    folder: PathBuf,
}

impl Archive {
    /// Returns the machine's own suite from apt's configuration, and the suite's security updates if they come from
    /// another archive.
    pub(crate) fn of_this_machine() -> Result<(Self, Option<Self>)> {
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let field = |name: &str| {
            release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(|it| it.trim_matches('"'))
        };
        if field("ID") != Some("debian") {
            bail!("packages come from Debian's archive by way of this machine's apt, and this machine is not Debian");
        }
        let codename = field("VERSION_CODENAME").unwrap_or("unstable");
        let sources = sources()?;
        let archive =
            sources.iter().find_map(|text| Self::find(text, &[codename, "stable", "testing", "unstable", "sid"]));
        let archive =
            archive.with_context(|| format!("apt's sources here name no archive with the suite {codename}"))?;
        let security = [codename, "stable", "testing"].map(|suite| format!("{suite}-security"));
        let security = security.each_ref().map(String::as_str);
        Ok((archive, sources.iter().find_map(|text| Self::find(text, &security))))
    }

    /// Returns another suite of the same archive.
    pub(crate) fn with_suite(&self, suite: &str) -> Self {
        Self { suite: suite.into(), ..self.clone() }
    }

    /// Returns the archive's address.
    pub(crate) fn uri(&self) -> &str {
        &self.uri
    }

    /// Returns the keyring or key that signs the archive: the one that the machine's sources name, or else Debian's if
    /// it is installed.
    pub(crate) fn keyring(&self) -> Option<&str> {
        self.signed_by.as_deref().or_else(|| Path::new(KEYRING).exists().then_some(KEYRING))
    }

    /// Returns the archive as a line of apt's sources.
    pub(crate) fn line(&self) -> String {
        let Self { uri, suite, .. } = self;
        let key = self.keyring().map(|key| format!("[signed-by={key}] ")).unwrap_or_default();
        format!("deb {key}{uri} {suite} main\n")
    }

    /// Finds the first source of packages of one of these suites in a file of apt's sources, in both formats.
    fn find(sources: &str, suites: &[&str]) -> Option<Self> {
        let one_line = sources.lines().filter_map(Self::parse_line);
        let stanzas = sources.split("\n\n").filter_map(Self::parse_stanza).flatten();
        one_line.chain(stanzas).find(|archive| suites.contains(&archive.suite.as_str()))
    }

    /// Parses a line `deb [signed-by=…] URI SUITE COMPONENT…`.
    fn parse_line(line: &str) -> Option<Self> {
        let rest = line.trim().strip_prefix("deb")?.trim_start();
        let (options, rest) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')).unwrap_or(("", rest));
        let mut words = rest.split_whitespace();
        let (uri, suite) = (words.next()?, words.next()?);
        words.find(|component| *component == "main")?;
        let signed_by = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
        Some(Self { uri: uri.into(), suite: suite.into(), signed_by: signed_by.map(String::from) })
    }

    /// Parses a stanza of fields (deb822). Returns one archive for each of its suites.
    fn parse_stanza(stanza: &str) -> Option<Vec<Self>> {
        let lines = stanza.lines().filter(|line| !line.starts_with('#'));
        let text = lines.collect::<Vec<_>>().join("\n").replace("\n ", " ");
        let field = |name: &str| {
            let mut fields = text.lines().filter_map(|line| line.split_once(':'));
            fields.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
        };
        let has = |name, word| field(name).is_some_and(|value| value.split_whitespace().any(|it| it == word));
        if !has("Types", "deb") || !has("Components", "main") || field("Enabled") == Some("no") {
            return None;
        }
        let uri = field("URIs")?.split_whitespace().next()?;
        // The stanza may also contain the key itself. A machine with such a stanza has Debian's keyring, too.
        let signed_by = field("Signed-By").filter(|value| value.starts_with('/'));
        let suites = field("Suites")?.split_whitespace();
        let archive =
            |suite: &str| Self { uri: uri.into(), suite: suite.into(), signed_by: signed_by.map(String::from) };
        Some(suites.map(archive).collect())
    }
}

/// Returns how this machine's apt reaches archives (proxies, timeouts), in the format of apt's configuration.
pub(crate) fn acquire_settings() -> Result<String> {
    let machine = run(Command::new("apt-config").arg("dump"))?;
    Ok(machine.lines().filter(|line| line.starts_with("Acquire")).map(|line| format!("{line}\n")).collect())
}

/// Returns the files of apt's sources.
fn sources() -> Result<Vec<String>> {
    let files =
        run(Command::new("apt-config").args(["shell", "l", "Dir::Etc::sourcelist/f", "p", "Dir::Etc::sourceparts/d"]))?;
    let mut texts = Vec::new();
    // `apt-config` prints lines such as `l='/etc/apt/sources.list'`.
    for path in files.lines().filter_map(|line| Some(line.split_once('=')?.1.trim_matches('\''))) {
        let parts = fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
        let parts = parts.filter(|part| part.extension().is_some_and(|end| end == "list" || end == "sources"));
        texts.extend(parts.chain([path.into()]).filter_map(|file| fs::read_to_string(file).ok()));
    }
    Ok(texts)
}

impl Apt {
    /// Creates an apt that knows these suites. `installed` is dpkg's list of packages that need not be fetched; without
    /// it, everything is fetched.
    pub(crate) fn new(folder: &Path, archives: &[Archive], installed: Option<&Path>) -> Result<Self> {
        for part in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(part)).with_context(|| format!("creating {}", folder.display()))?;
        }
        let folder = fs::canonicalize(folder)?;
        let apt = Self { folder: folder.clone() };
        let status = folder.join("state/status");
        match installed {
            Some(installed) => drop(fs::copy(installed, &status).context("copying dpkg's list of packages")?),
            None => fs::write(&status, "")?,
        }
        fs::write(folder.join("sources.list"), archives.iter().map(Archive::line).collect::<String>())?;
        // The machine's configuration says how to reach an archive; everything else is set here.
        let acquire = acquire_settings()?;
        let at = folder.display();
        let config = format!(
            r#"{acquire}Acquire::Languages "none";
Acquire::Retries "3";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
APT::Update::Error-Mode "any";
Debug::NoLocking "true";
Dir::Cache "{at}/cache";
Dir::Etc::Main "/dev/null";
Dir::Etc::Parts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::Etc::SourceList "{at}/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Log "{at}/log";
Dir::State "{at}/state";
Dir::State::status "{at}/state/status";
"#
        );
        fs::write(folder.join("apt.conf"), config)?;
        run(apt.command("apt-get").arg("update")).context("is the Debian archive reachable?")?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.folder.join("apt.conf"));
        command
    }

    /// Returns the package with this prefix and the highest number after it.
    pub(crate) fn newest(&self, prefix: &str) -> Result<String> {
        let names = run(self.command("apt-cache").args(["pkgnames", prefix]))?;
        let number = |name: &str| name.strip_prefix(prefix)?.trim_end_matches("t64").parse::<u32>().ok();
        let newest = names.lines().filter(|name| number(name).is_some()).max_by_key(|name| number(name));
        newest.map(String::from).with_context(|| format!("the archive has no package {prefix}N"))
    }

    /// Returns the version of a package that would be installed, if the package exists.
    pub(crate) fn candidate(&self, package: &str) -> Result<Option<String>> {
        let policy = run(self.command("apt-cache").args(["policy", package]))?;
        let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
        Ok(version.filter(|version| *version != "(none)").map(String::from))
    }

    /// Fetches these packages and everything that they need. Returns what was fetched.
    pub(crate) fn download(&self, packages: &[&str]) -> Result<Vec<Package>> {
        let mut apt = self.command("apt-get");
        run(apt.args(["install", "--download-only", "--yes", "--quiet"]).args(packages))?;
        self.archives()?
            .iter()
            .map(|file| {
                let mut show = Command::new("dpkg-deb");
                let line = run(show.args(["--show", "--showformat", "${Package} ${Version}"]).arg(file))?;
                Package::parse(&line).with_context(|| format!("{} has no name", file.display()))
            })
            .collect()
    }

    /// Unpacks the fetched packages.
    pub(crate) fn unpack(&self, into: &Path) -> Result<()> {
        fs::create_dir_all(into)?;
        for file in self.archives()? {
            run(Command::new("dpkg-deb").arg("--extract").arg(file).arg(into))?;
        }
        Ok(())
    }

    fn archives(&self) -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(self.folder.join("cache/archives"))?;
        let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|file| file.extension().is_some_and(|end| end == "deb"));
        files.sort();
        Ok(files)
    }
}

impl Package {
    /// Parses a line with a package's name and version.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let (name, version) = line.split_once(' ')?;
        Some(Self { name: name.into(), version: version.into() })
    }
}

/// Runs a command and returns its output. If it fails, its messages are part of the error.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = match command.stdin(Stdio::null()).env("LC_ALL", "C").output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let debians = program.starts_with("apt-") || program.starts_with("dpkg-");
            bail!("{program} is not here{}", if debians { ", and Debian's apt and dpkg bring packages" } else { "" })
        }
        output => output.with_context(|| format!("starting {program}"))?,
    };
    if !output.status.success() {
        bail!("{program}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(uri: &str, suite: &str, signed_by: Option<&str>) -> Option<Archive> {
        Some(Archive { uri: uri.into(), suite: suite.into(), signed_by: signed_by.map(String::from) })
    }

    #[test]
    fn one_line_sources_are_understood() {
        let text = "# deb http://no.example/debian bookworm main\n\
                    deb-src http://source.example/debian bookworm main\n\
                    deb http://other.example/apt tool main\n\
                    deb http://a.example/security bookworm-security main\n\
                    deb [arch=amd64 signed-by=/k.gpg] http://a.example/debian bookworm main contrib\n";
        assert_eq!(Archive::find(text, &["bookworm"]), archive("http://a.example/debian", "bookworm", Some("/k.gpg")));
        let security = archive("http://a.example/security", "bookworm-security", None);
        assert_eq!(Archive::find(text, &["bookworm-security"]), security);
        assert_eq!(Archive::find(text, &["trixie"]), None);
        let bare = "deb mirror+file:/etc/mirrors stable main";
        assert_eq!(Archive::find(bare, &["trixie", "stable"]), archive("mirror+file:/etc/mirrors", "stable", None));
    }

    #[test]
    fn stanzas_are_understood() {
        let text = "Types: deb\nURIs: http://a.example/security\nSuites: trixie-security\nComponents: main\n\n\
                    Types: deb deb-src\n# a comment\nURIs: http://a.example/debian\nSuites: trixie trixie-updates\n\
                    Components: main\nSigned-By: /usr/share/k.gpg\n";
        let found = archive("http://a.example/debian", "trixie", Some("/usr/share/k.gpg"));
        assert_eq!(Archive::find(text, &["trixie"]), found);
        let inline = "Types: deb\nURIs: http://a.example/debian\nSuites: trixie\nComponents: main\nSigned-By:\n \
                      -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n";
        assert_eq!(Archive::find(inline, &["trixie"]), archive("http://a.example/debian", "trixie", None));
        let disabled = text.replace("# a comment", "Enabled: no");
        assert_eq!(Archive::find(&disabled, &["trixie"]), None);
    }
}
