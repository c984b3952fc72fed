//! Nodes as processes of this program, which speak in lines of JSON.

use crate::wire::hear;
use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;
use std::io::BufReader;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// This program once more, ended with this value.
pub(crate) struct Process {
    child: Child,
    /// What it says.
    pub(crate) out: BufReader<ChildStdout>,
    /// What it is told, until dropped.
    pub(crate) told: Option<ChildStdin>,
}

impl Process {
    /// Starts it with these arguments.
    pub(crate) fn spawn<A: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = A>) -> Result<Self> {
        let program = std::env::current_exe().context("finding this program")?;
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting a node")?;
        let out = child.stdout.take().context("a node's output")?;
        let told = child.stdin.take();
        Ok(Self { child, out: BufReader::new(out), told })
    }

    /// The next thing that it says.
    pub(crate) fn line<T: DeserializeOwned>(&mut self) -> Result<T> {
        hear(&mut self.out)?.context("it ended without a word (its complaint is above)")
    }

    /// Ends it now.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill().context("killing a node")
    }

    /// Waits until it has ended by itself, and well.
    pub(crate) fn wait(&mut self) -> Result<()> {
        self.told = None;
        let status = self.child.wait()?;
        ensure!(status.success(), "it ended with {status}");
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing to kill where it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
