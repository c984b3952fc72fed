//! Nodes as processes of this program, which speak in lines of JSON.

use crate::wire::read_line;
use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;
use std::io::BufReader;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// This program once more, ended with this value.
pub(crate) struct Process {
    child: Child,
    /// What it says.
    pub(crate) output: BufReader<ChildStdout>,
    /// What it is told, until dropped.
    pub(crate) input: Option<ChildStdin>,
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
        let output = child.stdout.take().context("a node's output")?;
        let input = child.stdin.take();
        Ok(Self { child, output: BufReader::new(output), input })
    }

    /// The next thing that it says.
    pub(crate) fn line<T: DeserializeOwned>(&mut self) -> Result<T> {
        read_line(&mut self.output)?.context("it ended without a word (its complaint is above)")
    }

    /// Ends it now.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill().context("killing a node")
    }

    /// Waits until it has ended by itself, and well.
    pub(crate) fn wait(&mut self) -> Result<()> {
        self.input = None;
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
