//! Lines of JSON between processes and between hosts. Three things are bounded: the length of a line, the time for a
//! whole line, and the part of it that an error message repeats.
//!
//! | item | use |
//! | --- | --- |
//! | [`write_line`], [`read_line`] | this program and its own processes, through pipes |
//! | [`Wire`] | two nodes, over TCP |
//! | [`accept_peer`] | a node that listens: the first connection with a valid introduction is its peer |

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::fmt::{self, Display, Formatter, Write as _};
use std::io::{BufRead, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// The maximum length in bytes of a line between processes of this program. The longest is a report of some 10 KiB.
const LONGEST_REPORT: usize = 1 << 20;
/// The maximum length in bytes of a line from another host. Valid lines are shorter than 1 KiB.
const LONGEST: usize = 16 << 10;
/// The maximum number of connections that have not introduced themselves. One more closes the oldest.
const MAX_SILENT: usize = 64;
/// The maximum number of refusals that are printed. Each refused connection gets the reason in any case.
const MAX_REPORTED: usize = 20;
/// The number of characters of a line that an error message repeats.
const REPEATED: usize = 200;

/// Writes a line of JSON.
pub(crate) fn write_line(to: &mut impl Write, what: &impl Serialize) -> Result<()> {
    to.write_all(&line_of(what)?)?;
    Ok(to.flush()?)
}

/// Reads a line of JSON. Returns `None` at the end.
pub(crate) fn read_line<T: DeserializeOwned>(from: &mut impl BufRead) -> Result<Option<T>> {
    let mut line = Vec::new();
    from.take(LONGEST_REPORT as u64 + 1).read_until(b'\n', &mut line)?;
    match line.strip_suffix(b"\n") {
        Some(line) => parse(line).map(Some),
        None if line.is_empty() => Ok(None),
        None if line.len() > LONGEST_REPORT => bail!("a line of more than {LONGEST_REPORT} bytes: {}", Excerpt(&line)),
        None => bail!("it ended within a line: {}", Excerpt(&line)),
    }
}

fn line_of(what: &impl Serialize) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    Ok(line)
}

fn parse<T: DeserializeOwned>(line: &[u8]) -> Result<T> {
    // The parser's message may quote the whole line.
    let complaint = |error: serde_json::Error| anyhow!("it said {}: {}", Excerpt(line), Plain(&error.to_string()));
    serde_json::from_slice(line).map_err(complaint)
}

/// Prints the beginning of a received line in quotes, safe for a terminal.
struct Excerpt<'a>(&'a [u8]);

impl Display for Excerpt<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        // A character has at most 4 bytes.
        let start = &self.0[..self.0.len().min(4 * REPEATED + 4)];
        write!(f, "\"{}\"", Plain(&String::from_utf8_lossy(start)))?;
        if start.len() < self.0.len() { write!(f, " of {} bytes", self.0.len()) } else { Ok(()) }
    }
}

/// Prints the beginning of a text. Everything but printable ASCII is escaped, so that a terminal does not interpret it.
pub(crate) struct Plain<'a>(pub(crate) &'a str);

impl Display for Plain<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut chars = self.0.chars();
        for char in chars.by_ref().take(REPEATED) {
            match char {
                ' '..='~' => f.write_char(char)?,
                _ => write!(f, "{}", char.escape_default())?,
            }
        }
        if chars.next().is_some() { f.write_str("…") } else { Ok(()) }
    }
}

/// The answer of a listening node to an introduction.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer<T> {
    /// The connection is accepted. Contains the node's own introduction.
    Welcome(T),
    /// The connection is refused, for this reason.
    Refused(String),
}

/// A connection that carries lines of JSON.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: TcpStream,
    /// The timeout for sending or receiving a whole line.
    patience: Duration,
    /// Received bytes after the last line.
    buffer: Vec<u8>,
}

impl Wire {
    /// Connects to `HOST:PORT`.
    pub(crate) fn connect(to: &str, patience: Duration) -> Result<Self> {
        let deadline = Instant::now() + patience;
        let mut failure = None;
        for address in resolve(to).with_context(|| format!("connecting to {to}"))? {
            // `connect_timeout` refuses a timeout of zero.
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            match TcpStream::connect_timeout(&address, left) {
                Ok(stream) => return Ok(Self::new(stream, patience)?),
                Err(error) => failure = Some((address, error)),
            }
        }
        let (address, error) = failure.with_context(|| format!("connecting to {to}: it has no address"))?;
        Err(error).with_context(|| format!("connecting to {to} ({address})"))
    }

    fn new(stream: TcpStream, patience: Duration) -> std::io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { stream, patience, buffer: Vec::new() })
    }

    /// Sends a line.
    pub(crate) fn send(&mut self, what: &impl Serialize) -> Result<()> {
        self.send_bytes(&line_of(what)?).context("telling the other node")
    }

    /// Receives the next line.
    pub(crate) fn receive<T: DeserializeOwned>(&mut self) -> Result<T> {
        let line = self.receive_line().context("waiting for the other node's word")?;
        parse(&line).context("the other node's word")
    }

    fn send_bytes(&mut self, mut line: &[u8]) -> Result<()> {
        let deadline = Instant::now() + self.patience;
        while !line.is_empty() {
            self.stream.set_write_timeout(Some(self.left(deadline, "it did not listen")?))?;
            match self.stream.write(line) {
                Ok(written) => line = &line[written..],
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn receive_line(&mut self) -> Result<Vec<u8>> {
        let deadline = Instant::now() + self.patience;
        loop {
            if let Some(line) = self.next_line()? {
                return Ok(line);
            }
            self.stream.set_read_timeout(Some(self.left(deadline, "no whole line came")?))?;
            ensure!(self.read()?, "it closed the connection");
        }
    }

    /// Returns the time until the deadline, or an error with the text `otherwise` if it has passed.
    fn left(&self, deadline: Instant, otherwise: &str) -> Result<Duration> {
        let left = deadline.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "{otherwise} within {:?} (--timeout)", self.patience);
        Ok(left)
    }

    /// Takes the next line out of the received bytes, if it is complete.
    fn next_line(&mut self) -> Result<Option<Vec<u8>>> {
        let end = self.buffer.iter().position(|byte| *byte == b'\n');
        ensure!(
            end.unwrap_or(self.buffer.len()) <= LONGEST,
            "a line of more than {LONGEST} bytes: {}",
            Excerpt(&self.buffer)
        );
        let Some(end) = end else { return Ok(None) };
        let rest = self.buffer.split_off(end + 1);
        let mut line = std::mem::replace(&mut self.buffer, rest);
        line.pop();
        Ok(Some(line))
    }

    /// Reads once. Returns `false` if the other end has closed the connection.
    fn read(&mut self) -> Result<bool> {
        let mut chunk = [0; 4096];
        match self.stream.read(&mut chunk) {
            Ok(0) => Ok(false),
            Ok(read) => {
                self.buffer.extend_from_slice(&chunk[..read]);
                Ok(true)
            }
            Err(error) if is_passing(&error) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }
}

/// Returns `true` for errors after which a call can be repeated: there was nothing to do in time, or a signal arrived.
fn is_passing(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// Looks up the addresses of `HOST:PORT`.
pub(crate) fn resolve(name: &str) -> Result<Vec<SocketAddr>> {
    let port = name.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    ensure!(port.is_some(), "{name:?} is not HOST:PORT, with a port from 0 to 65535");
    let addresses = name.to_socket_addrs().with_context(|| format!("looking up {name:?}"))?;
    Ok(addresses.collect())
}

/// A connection that has not introduced itself yet.
struct Candidate {
    wire: Wire,
    from: SocketAddr,
    deadline: Instant,
}

impl Candidate {
    /// Closes the connection after sending the reason, which is also printed. `reported` counts the printed refusals.
    fn refuse(self, why: &anyhow::Error, reported: &mut usize) {
        report(reported, &format_args!("a connection from {} was refused: {why:#}", self.from));
        self.dismiss(format!("{why:#}"));
    }

    fn dismiss(mut self, why: String) {
        let refused = line_of(&Answer::<()>::Refused(why)).unwrap_or_default();
        let _ = self.wire.stream.write(&refused); // it does not block
    }

    /// Returns the introduction if it has arrived completely.
    fn introduction<T: DeserializeOwned>(&mut self, readable: bool) -> Result<Option<T>> {
        let open = if readable { self.wire.read()? } else { true };
        if let Some(line) = self.wire.next_line()? {
            return parse(&line).map(Some);
        }
        ensure!(open, "it closed the connection without a word");
        self.wire.left(self.deadline, "it did not introduce itself")?;
        Ok(None)
    }
}

/// Prints an event that does not end the wait for a peer. Only the first [`MAX_REPORTED`] are printed.
fn report(reported: &mut usize, what: &dyn Display) {
    *reported += 1;
    match *reported {
        ..=MAX_REPORTED => eprintln!("efa: {what}; waiting on"),
        reported if reported == MAX_REPORTED + 1 => {
            eprintln!("efa: there are more such connections; no more words of them")
        }
        _ => {}
    }
}

/// Waits without limit for a peer: a connection that sends an introduction (a line) within `patience`, for which
/// `welcome` succeeds. Returns it with `welcome`'s result.
///
/// All other connections are refused with a reason. They neither delay nor end the wait.
pub(crate) fn accept_peer<T: DeserializeOwned, R>(
    listener: &TcpListener,
    patience: Duration,
    mut welcome: impl FnMut(T) -> Result<R>,
) -> Result<(Wire, R)> {
    listener.set_nonblocking(true)?;
    let (mut candidates, mut reported) = (Vec::<Candidate>::new(), 0);
    loop {
        let next = candidates.iter().map(|candidate| candidate.deadline).min();
        let ready = wait(listener, &candidates, next)?;
        let mut all = std::mem::take(&mut candidates).into_iter().zip(ready);
        while let Some((mut candidate, readable)) = all.next() {
            match candidate.introduction(readable).and_then(|it| it.map(&mut welcome).transpose()) {
                Ok(None) => candidates.push(candidate),
                Ok(Some(welcomed)) => {
                    candidate.wire.stream.set_nonblocking(false)?;
                    let others = candidates.into_iter().chain(all.map(|(other, _)| other));
                    others.for_each(|other| other.dismiss("another node came first".into()));
                    return Ok((candidate.wire, welcomed));
                }
                Err(why) => candidate.refuse(&why, &mut reported),
            }
        }
        let accepted = listener.accept().and_then(|(stream, from)| {
            stream.set_nonblocking(true)?;
            Ok(Candidate { wire: Wire::new(stream, patience)?, from, deadline: Instant::now() + patience })
        });
        let is_full = match accepted {
            Ok(candidate) => {
                candidates.push(candidate);
                candidates.len() > MAX_SILENT
            }
            Err(error) if is_passing(&error) => false,
            Err(error) => {
                // The connection broke before it was accepted, or this process has no descriptor left.
                report(&mut reported, &format_args!("a connection did not come about: {error}"));
                if candidates.is_empty() {
                    std::thread::sleep(Duration::from_millis(100)); // no connection can be closed to free a descriptor
                }
                !candidates.is_empty()
            }
        };
        if is_full {
            candidates.remove(0).refuse(&anyhow!("others came, and it had not introduced itself yet"), &mut reported);
        }
    }
}

/// Waits until there is a new connection, a candidate has sent something, or the deadline has passed. Returns for each
/// candidate whether it is readable.
fn wait(listener: &TcpListener, candidates: &[Candidate], deadline: Option<Instant>) -> Result<Vec<bool>> {
    let mut fds = vec![PollFd::new(listener, PollFlags::IN)];
    fds.extend(candidates.iter().map(|candidate| PollFd::new(&candidate.wire.stream, PollFlags::IN)));
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    let left = left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
    match poll(&mut fds, left.as_ref()) {
        // After a signal, the caller checks all deadlines and waits again.
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(fds[1..].iter().map(|fd| !fd.revents().is_empty()).collect()),
        Err(error) => Err(error).context("waiting for a connection"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::thread;

    const SOON: Duration = Duration::from_secs(20);

    /// Returns both ends of a connection. The first has this timeout.
    fn pair(patience: Duration) -> (Wire, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = Wire::connect(&listener.local_addr().unwrap().to_string(), patience).unwrap();
        (near, listener.accept().unwrap().0)
    }

    /// Waits in a thread for a peer that introduces itself with a number other than 0.
    fn listening(patience: Duration) -> (String, thread::JoinHandle<(Wire, u64)>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let welcome = |number: u64| {
            ensure!(number > 0, "0 is not welcome");
            Ok(number)
        };
        (address, thread::spawn(move || accept_peer(&listener, patience, welcome).unwrap()))
    }

    #[test]
    fn what_is_said_is_heard_line_by_line_however_it_is_cut() {
        let (mut near, mut far) = pair(SOON);
        far.write_all(b"{\"a\":1}\n{\"b\"").unwrap();
        assert_eq!(near.receive::<Value>().unwrap(), json!({"a": 1}));
        far.write_all(b":2}\n").unwrap();
        assert_eq!(near.receive::<Value>().unwrap(), json!({"b": 2}));
        near.send(&"bye").unwrap();
        drop(near);
        let mut said = String::new();
        far.read_to_string(&mut said).unwrap();
        assert_eq!(said, "\"bye\"\n");
    }

    #[test]
    fn bytes_that_trickle_do_not_extend_the_time_for_a_line() {
        let (mut near, mut far) = pair(Duration::from_millis(300));
        // Each byte arrives long before the timeout.
        let trickle = thread::spawn(move || {
            while far.write_all(b"1").is_ok() {
                thread::sleep(Duration::from_millis(10));
            }
        });
        let start = Instant::now();
        let error = format!("{:#}", near.receive::<Value>().unwrap_err());
        assert!(error.contains("no whole line came within 300ms (--timeout)"), "{error}");
        assert!(start.elapsed() >= Duration::from_millis(300));
        drop(near);
        trickle.join().unwrap();
    }

    #[test]
    fn who_does_not_listen_is_not_waited_for_without_end() {
        let (mut near, _far) = pair(Duration::from_millis(200));
        let error = format!("{:#}", near.send(&"x".repeat(64 << 20)).unwrap_err());
        assert!(error.contains("it did not listen within 200ms (--timeout)"), "{error}");
    }

    #[test]
    fn a_line_without_end_is_given_up_early_and_its_complaint_is_short() {
        let (mut near, mut far) = pair(SOON);
        let flood = thread::spawn(move || while far.write_all(&[0x1b; 4096]).is_ok() {});
        let error = format!("{:#}", near.receive::<Value>().unwrap_err());
        assert!(error.contains("a line of more than 16384 bytes"), "{error}");
        assert!(error.len() < 2000 && !error.contains('\x1b'), "{error}");
        assert!(near.buffer.len() <= LONGEST + 4096);
        drop(near);
        flood.join().unwrap();
        // The same holds for a pipe.
        let endless = std::io::repeat(b'7').take(1 << 30);
        let error = format!("{:#}", read_line::<Value>(&mut std::io::BufReader::new(endless)).unwrap_err());
        assert!(error.contains("a line of more than 1048576 bytes") && error.len() < 300, "{error}");
    }

    #[test]
    fn what_an_error_repeats_is_short_and_escaped() {
        let line = format!("{{\"name\":\"{}\\u001b[2J\"}}", "é\u{202e}".repeat(4000));
        #[derive(Debug, Deserialize)]
        struct Named {
            #[expect(dead_code)]
            name: u64,
        }
        let error = format!("{:#}", parse::<Named>(line.as_bytes()).unwrap_err());
        assert!(error.is_ascii() || error.replace('…', "").is_ascii(), "{error}");
        assert!(error.contains("it said \"{\"name\":\"\\u{e9}") && error.contains("invalid type: string"), "{error}");
        assert!(error.len() < 2500, "{} bytes", error.len());
    }

    #[test]
    fn a_pipe_that_ends_within_a_line_is_an_error_and_between_lines_the_end() {
        assert_eq!(read_line::<u64>(&mut &b""[..]).unwrap(), None);
        let mut two = &b"12\n34"[..];
        assert_eq!(read_line::<u64>(&mut two).unwrap(), Some(12));
        assert!(format!("{:#}", read_line::<u64>(&mut two).unwrap_err()).contains("ended within a line: \"34\""));
    }

    #[test]
    fn strangers_are_refused_with_a_reason_and_the_peer_is_welcome_among_and_after_them() {
        let (address, met) = listening(SOON);
        let silent: Vec<_> = (0..3).map(|_| TcpStream::connect(&address).unwrap()).collect();
        drop(TcpStream::connect(&address).unwrap()); // comes and goes
        for (said, why) in
            [("hello\n", "it said \"hello\""), ("0\n", "0 is not welcome"), ("-1\n", "invalid value: integer `-1`")]
        {
            let mut stray = TcpStream::connect(&address).unwrap();
            stray.set_read_timeout(Some(SOON)).unwrap();
            stray.write_all(said.as_bytes()).unwrap();
            let mut told = String::new();
            stray.read_to_string(&mut told).unwrap();
            let Answer::Refused(told) = serde_json::from_str::<Answer<()>>(&told).unwrap() else { panic!("{told}") };
            assert!(told.contains(why), "{told}");
        }
        let mut peer = Wire::connect(&address, SOON).unwrap();
        peer.send(&7).unwrap();
        let (mut theirs, number) = met.join().unwrap();
        assert_eq!(number, 7);
        for mut stream in silent {
            let mut told = String::new();
            stream.read_to_string(&mut told).unwrap();
            assert!(told.contains("another node came first"), "{told}");
        }
        // The connection is a blocking one again.
        theirs.send(&Answer::Welcome(8)).unwrap();
        assert!(matches!(peer.receive::<Answer<u64>>().unwrap(), Answer::Welcome(8)));
    }

    #[test]
    fn who_says_nothing_is_refused_in_time_even_if_nothing_else_happens() {
        let (address, met) = listening(Duration::from_millis(200));
        let mut silent = TcpStream::connect(&address).unwrap();
        silent.set_read_timeout(Some(SOON)).unwrap();
        let mut told = String::new();
        silent.read_to_string(&mut told).unwrap();
        assert!(told.contains("it did not introduce itself within 200ms"), "{told}");
        Wire::connect(&address, SOON).unwrap().send(&1).unwrap();
        met.join().unwrap();
    }

    #[test]
    fn a_crowd_of_silent_connections_does_not_keep_the_peer_out() {
        let (address, met) = listening(Duration::from_secs(3600));
        let crowd: Vec<_> = (0..3 * MAX_SILENT).map(|_| TcpStream::connect(&address).unwrap()).collect();
        Wire::connect(&address, SOON).unwrap().send(&1).unwrap();
        assert_eq!(met.join().unwrap().1, 1);
        drop(crowd);
    }

    #[test]
    fn hosts_have_names_and_what_is_no_host_with_a_port_is_refused_with_the_form() {
        assert!(
            resolve("localhost:80").unwrap().iter().all(|address| address.ip().is_loopback() && address.port() == 80)
        );
        assert_eq!(resolve("[::1]:80").unwrap(), ["[::1]:80".parse().unwrap()]);
        for name in ["localhost", "localhost:", "127.0.0.1:65536", "", "127.0.0.1:x"] {
            let error = format!("{:#}", resolve(name).unwrap_err());
            assert!(error.contains("is not HOST:PORT"), "{error}");
        }
    }
}
