//! One of the two processes of a soak. It exchanges these messages with its parent:
//!
//! | from the node | to the node | meaning |
//! | --- | --- | --- |
//! | `Hello` | `Peer` | the addresses of the nodes |
//! | `Ready` | `Start` | each device knows the other, without which it refuses RDMA |
//! | `Progress` | | once a second |
//! | `Stopped` | `Drain` | the time is over, and none of the node's requests are outstanding; nor are the other's |
//! | `Totals` | `Totals` | the numbers of everything that was sent |
//! | `Report` | `Bye` | everything has arrived; at the other node, too |

use super::faults::Schedule;
use super::report::{NodeReport, Packets, Rss};
use super::setup::{Hello, Objects};
use super::traffic::{PATIENCE, Totals, Traffic};
use super::work::Work;
use crate::wire::{read_line, write_line};
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use std::io::{BufReader, stdin, stdout};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

/// The longest time that a node sleeps when there is nothing to do.
const NAP: Duration = Duration::from_millis(1);
/// The maximum number of requests that are posted between two polls.
const BURST: usize = 64;

/// Options of `efa soak-node`.
#[derive(Args)]
pub(crate) struct Options {
    #[arg(long)]
    node: usize,
    #[command(flatten)]
    work: Work,
}

/// A message from a node to its parent.
#[derive(Serialize, Deserialize)]
pub(super) enum FromNode {
    Hello(Hello),
    Ready,
    Progress(Progress),
    Stopped,
    Totals(Totals),
    Report(Box<NodeReport>),
}

/// A message from the parent to a node.
#[derive(Serialize, Deserialize)]
pub(super) enum ToNode {
    Peer(Hello),
    Start,
    Drain,
    Totals(Totals),
    Bye,
}

/// The progress of a node.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Progress {
    pub(super) operations: u64,
    pub(super) resent: u64,
    pub(super) rss: u64,
    pub(super) fault: String,
}

/// A phase of a node's run.
#[derive(Debug, PartialEq)]
enum Phase {
    Running,
    /// There is no new traffic; slots are still released and read back.
    Stopping,
    Stopped,
    /// Neither node starts new work.
    Draining,
    /// The node waits for the other node's totals.
    Drained,
    Comparing(Totals),
    /// The node has received everything, but its device must stay: the other node may still wait for an
    /// acknowledgement.
    Done,
}

/// Runs `efa soak-node`.
pub(crate) fn main(options: &Options) -> Result<()> {
    let Options { node, work } = options;
    ensure!(*node < 2, "there are nodes 0 and 1");
    Runner::new(*node, work).and_then(Runner::run).with_context(|| format!("node {node}, seed {}", work.seed))
}

/// Starts a thread that receives the parent's messages. It ends this process when the parent ends.
fn listen() -> Result<Receiver<ToNode>> {
    let (sender, receiver) = channel();
    std::thread::Builder::new().name("parent".into()).spawn(move || {
        let mut parent = BufReader::new(stdin());
        loop {
            match read_line(&mut parent) {
                Ok(Some(message)) => {
                    let last = matches!(message, ToNode::Bye);
                    if sender.send(message).is_err() || last {
                        return;
                    }
                }
                Ok(None) => std::process::exit(1), // the parent has ended, and nobody would read a message
                Err(error) => {
                    eprintln!("efa: what the parent says: {error:#}");
                    std::process::exit(1);
                }
            }
        }
    })?;
    Ok(receiver)
}

/// The state of a node's loop.
struct Runner<'a> {
    work: &'a Work,
    parent: Receiver<ToNode>,
    traffic: Traffic,
    faults: Schedule,
    phase: Phase,
    rng: fastrand::Rng,
    start: Instant,
    /// The time of the last completion or change of phase.
    active: Instant,
    next_second: Duration,
    /// The number of requests that the pace allows now.
    budget: f64,
    budget_at: Duration,
    events: u64,
    rss: Rss,
}

impl<'a> Runner<'a> {
    fn new(node: usize, work: &'a Work) -> Result<Self> {
        let parent = listen()?;
        let objects = Objects::new(node, work.seed)?;
        let faults = Schedule::new(&objects.device, work.seed, node)?;
        write_line(&mut stdout(), &FromNode::Hello(objects.hello()))?;
        let ToNode::Peer(hello) = parent.recv()? else { bail!("the first word is where the other node is") };
        let traffic = Traffic::new(objects, &hello, node, work.seed)?;
        write_line(&mut stdout(), &FromNode::Ready)?;
        let ToNode::Start = parent.recv()? else { bail!("the second word is to start") };
        Ok(Self {
            work,
            parent,
            traffic,
            faults,
            phase: Phase::Running,
            rng: fastrand::Rng::with_seed(work.seed.wrapping_add(node as u64)),
            start: Instant::now(),
            active: Instant::now(),
            next_second: Duration::from_secs(1),
            budget: 0.0,
            budget_at: Duration::ZERO,
            events: 0,
            rss: Rss::default(),
        })
    }

    fn run(mut self) -> Result<()> {
        loop {
            let elapsed = self.start.elapsed();
            self.faults.tick(elapsed);
            let posted = self.post(elapsed)?;
            self.traffic.ring();
            let polled = self.traffic.poll()?;
            if polled {
                self.active = Instant::now();
            }
            if elapsed >= self.next_second {
                self.next_second += Duration::from_secs(1);
                self.every_second(elapsed)?;
            }
            self.read_parent()?;
            self.advance(elapsed)?;
            if self.phase == Phase::Done && self.parent.try_recv().is_ok() {
                return Ok(());
            }
            if !polled && posted == 0 {
                self.idle()?;
            }
        }
    }

    /// Posts as many requests as the pace allows, and returns their number.
    fn post(&mut self, elapsed: Duration) -> Result<usize> {
        match self.phase {
            Phase::Running => {}
            Phase::Stopping | Phase::Stopped => return Ok(self.traffic.post_last()?.into()),
            _ => return Ok(0),
        }
        let pace = self.work.pace as f64;
        let earned = (elapsed - self.budget_at).as_secs_f64() * pace;
        self.budget_at = elapsed;
        // A node that was late for longer than a moment does not catch up.
        self.budget = (self.budget + earned).min((pace / 50.0).max(1.0));
        let allowed = if self.work.pace == 0 { BURST } else { (self.budget as usize).min(BURST) };
        let mut posted = 0;
        for _ in 0..2 * BURST {
            if posted == allowed {
                break;
            }
            posted += usize::from(self.traffic.post_any()?);
        }
        self.budget -= posted as f64;
        Ok(posted)
    }

    /// Sleeps for a moment: at random by waiting for a completion event, or by yielding or sleeping.
    fn idle(&mut self) -> Result<()> {
        if self.rng.bool() {
            let which = self.rng.usize(..2);
            self.events += u64::from(self.traffic.objects.cqs[which].wait_event(NAP)?);
        } else if self.work.pace == 0 {
            std::thread::yield_now();
        } else {
            std::thread::sleep(NAP / 2);
        }
        Ok(())
    }

    fn every_second(&mut self, elapsed: Duration) -> Result<()> {
        let warm_up = (self.work.duration / 10).max(Duration::from_secs(5)).min(self.work.duration);
        self.rss.sample(elapsed >= warm_up)?;
        self.traffic.check()?;
        ensure!(
            self.active.elapsed() < PATIENCE,
            "nothing has completed for {PATIENCE:?} ({:?}, fault: {}): {}",
            self.phase,
            self.faults.now(),
            self.traffic.outstanding()
        );
        let progress = Progress {
            operations: self.traffic.done.total(),
            resent: self.traffic.objects.device.counters().retrans_pkts,
            rss: self.rss.last,
            fault: self.faults.now().into(),
        };
        write_line(&mut stdout(), &FromNode::Progress(progress))
    }

    fn read_parent(&mut self) -> Result<()> {
        if self.phase == Phase::Done {
            return Ok(()); // `run` takes the last message itself
        }
        let message = match self.parent.try_recv() {
            Ok(message) => message,
            Err(TryRecvError::Empty) => return Ok(()),
            Err(TryRecvError::Disconnected) => bail!("the parent says nothing any more"),
        };
        match (&self.phase, message) {
            (Phase::Stopped, ToNode::Drain) => self.enter(Phase::Draining),
            (Phase::Drained, ToNode::Totals(theirs)) => self.enter(Phase::Comparing(theirs)),
            (phase, _) => bail!("a word of the parent that does not fit: {phase:?}"),
        }
        Ok(())
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.active = Instant::now();
    }

    /// Moves to the next phase if this one is over.
    fn advance(&mut self, elapsed: Duration) -> Result<()> {
        match &self.phase {
            Phase::Running if elapsed >= self.work.duration => {
                self.faults.end();
                self.enter(Phase::Stopping);
            }
            Phase::Stopping if self.traffic.is_quiet() => {
                self.enter(Phase::Stopped);
                write_line(&mut stdout(), &FromNode::Stopped)?;
            }
            Phase::Draining if self.traffic.is_quiet() => {
                self.enter(Phase::Drained);
                write_line(&mut stdout(), &FromNode::Totals(self.traffic.sent()))?;
            }
            Phase::Comparing(theirs) => {
                let theirs = *theirs;
                if self.traffic.has_all(&theirs)? {
                    self.rss.sample(true)?;
                    self.traffic.check()?;
                    self.enter(Phase::Done);
                    write_line(&mut stdout(), &FromNode::Report(Box::new(self.report())))?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn report(&self) -> NodeReport {
        let device = &self.traffic.objects.device;
        NodeReport {
            operations: self.traffic.done,
            arrivals: self.traffic.arrivals,
            packets: Packets::of(&device.counters(), device.link_counters()),
            faults: self.faults.applied(),
            events: self.events,
            rss: self.rss,
        }
    }
}
