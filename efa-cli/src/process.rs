//! Nodes as processes of this program, which write and read lines of JSON.

use crate::wire::read_line;
use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;
use std::io::BufReader;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A child process that runs this program. Dropping it kills the process.
pub(crate) struct Process {
    child: Child,
    /// The process's standard output.
    pub(crate) output: BufReader<ChildStdout>,
    /// The process's standard input, until it is closed.
    pub(crate) input: Option<ChildStdin>,
}

impl Process {
    /// Starts the program with these arguments.
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

    /// Reads the next line that the process writes.
    pub(crate) fn line<T: DeserializeOwned>(&mut self) -> Result<T> {
        read_line(&mut self.output)?.context("it ended without a word (its complaint is above)")
    }

    /// Kills the process.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill().context("killing a node")
    }

    /// Closes the process's input and waits until it ends. An exit code other than 0 is an error.
    pub(crate) fn wait(&mut self) -> Result<()> {
        self.input = None;
        let status = self.child.wait()?;
        ensure!(status.success(), "it ended with {status}");
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Killing fails if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
