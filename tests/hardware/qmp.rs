//! QEMU's machine protocol: a JSON value a line, answers to our commands, and events in between.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::failure::{Result, failed};
use crate::lines::{Heard, Lines};

/// Longest wait for an answer or an event.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What we say.
#[derive(Serialize)]
struct Command<'a, A> {
    execute: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    arguments: Option<A>,
    id: u64,
}

/// What QEMU says.
#[derive(Deserialize)]
#[serde(untagged)]
enum Message {
    /// The first line.
    Greeting {
        #[serde(rename = "QMP")]
        _version: Value,
    },
    /// A command was executed.
    Done {
        #[serde(rename = "return")]
        _result: Value,
        id: u64,
    },
    /// A command was refused; one that QEMU could not read comes back without its number.
    Refused { error: Refusal, id: Option<u64> },
    /// Something happened.
    Event(Event),
}

/// Why a command was refused.
#[derive(Deserialize)]
struct Refusal {
    class: String,
    desc: String,
}

/// Something that happened in the machine.
#[derive(Deserialize)]
struct Event {
    event: String,
    #[serde(default)]
    data: EventData,
}

/// What an event says, as far as we look at it.
#[derive(Default, Deserialize)]
struct EventData {
    device: Option<String>,
}

/// A device to put in or to remove.
#[derive(Serialize)]
pub struct Nvme<'a> {
    /// The kind of device.
    pub driver: &'a str,
    /// How QEMU calls it.
    pub id: &'a str,
    /// Where it is put in.
    pub bus: &'a str,
    /// Its serial number.
    pub serial: &'a str,
    /// The node with its medium.
    pub drive: &'a str,
}

/// A device that QEMU knows.
#[derive(Serialize)]
struct Known<'a> {
    id: &'a str,
}

/// A conversation with QEMU.
pub struct Qmp {
    lines: Lines,
    /// The number of the last command.
    last: u64,
    /// The events that came while we waited for something else.
    events: Vec<Event>,
}

impl Qmp {
    /// Waits for QEMU's greeting, and ends the negotiation that it begins with.
    pub fn greet(stream: UnixStream) -> Result<Self> {
        let mut qmp = Self { lines: Lines::new(stream)?, last: 0, events: Vec::new() };
        match qmp.hear(Instant::now() + PATIENCE)? {
            Some(Message::Greeting { .. }) => {}
            _ => return Err(failed("QEMU does not greet: its version may be too new or too old for us")),
        }
        qmp.execute("qmp_capabilities", None::<()>)?;
        Ok(qmp)
    }

    /// Puts an NVMe disk in.
    pub fn device_add(&mut self, disk: &Nvme<'_>) -> Result<()> {
        self.execute("device_add", Some(disk))
    }

    /// Removes a device, and waits until the guest has let go of it.
    pub fn device_del(&mut self, id: &str) -> Result<()> {
        self.events.clear();
        self.execute("device_del", Some(Known { id }))?;
        let until = Instant::now() + PATIENCE;
        let is_it = |event: &Event| event.event == "DEVICE_DELETED" && event.data.device.as_deref() == Some(id);
        while !self.events.iter().any(is_it) {
            match self.hear(until)? {
                Some(Message::Event(event)) => self.events.push(event),
                Some(_) => {}
                None => return Err(failed(format!("the guest does not let go of {id}"))),
            }
        }
        Ok(())
    }

    /// Gives a command, and waits for its answer. Events that arrive meanwhile are kept.
    fn execute<A: Serialize>(&mut self, command: &str, arguments: Option<A>) -> Result<()> {
        self.last += 1;
        let said = Command { execute: command, arguments, id: self.last };
        let line = serde_json::to_string(&said).map_err(|error| failed(format!("cannot write {command}: {error}")))?;
        self.lines.say(&line)?;
        let until = Instant::now() + PATIENCE;
        loop {
            match self.hear(until)? {
                Some(Message::Done { id, .. }) if id == self.last => return Ok(()),
                Some(Message::Refused { error, id }) if id.is_none_or(|id| id == self.last) => {
                    return Err(failed(format!("QEMU refuses {command}: {}: {}", error.class, error.desc)));
                }
                Some(Message::Event(event)) => self.events.push(event),
                // A late answer to a command that we no longer wait for.
                Some(_) => {}
                None => return Err(failed(format!("QEMU does not answer {command}"))),
            }
        }
    }

    /// The next of what QEMU says, or nothing until the time is over.
    fn hear(&mut self, until: Instant) -> Result<Option<Message>> {
        match self.lines.next(until)? {
            Heard::Line(line) => match serde_json::from_str(&line) {
                Ok(message) => Ok(Some(message)),
                Err(error) => Err(failed(format!("QEMU says what we do not understand: {line}: {error}"))),
            },
            Heard::Silence => Ok(None),
            Heard::End => Err(failed("QEMU has ended the conversation: it crashed, or the machine turned itself off")),
        }
    }
}
