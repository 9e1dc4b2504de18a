//! SIGUSR2: the program starts again beside this process, and takes over from it.
//!
//! The new process has the command line of this one and `--take-over`, and the program is looked for by the name
//! that this process was started by: after an upgrade it is the new version. As long as the new process has not
//! asked to take over, it can fail, and this process goes on.

use std::ffi::{OsStr, OsString};
use std::process::{Child, Command};

use tracing::{error, info, warn};

/// The option that makes a process take over.
const TAKE_OVER: &str = "--take-over";

/// The process that is to take over from this one, while there is one.
#[derive(Default)]
pub(super) struct Successor {
    child: Option<Child>,
}

impl Successor {
    /// Starts the program again. `can_hand_over`: this process listens for one that takes over.
    pub(super) fn start(&mut self, can_hand_over: bool) {
        if !can_hand_over {
            return error!("no process can take over from this one: expected --state DIR");
        }
        if let Some(child) = &self.child {
            return warn!(
                pid = child.id(),
                "a process that takes over is starting already"
            );
        }
        let Some((program, arguments)) = command_line(std::env::args_os()) else {
            return error!("no process can take over: this one does not know its own name");
        };
        match Command::new(&program).args(arguments).spawn() {
            Ok(child) => {
                info!(pid = child.id(), "a process was started to take over");
                self.child = Some(child);
            }
            Err(error) => error!("no process can take over: {}: {error}", program.display()),
        }
    }

    /// Reports a process that ended before it took over.
    pub(super) fn look(&mut self) {
        let ended = self.child.as_mut().map(Child::try_wait);
        match ended {
            None | Some(Ok(None)) => return,
            Some(Ok(Some(status))) => {
                error!(
                    "the process that was started to take over ended ({status}): this one continues"
                );
            }
            Some(Err(error)) => {
                error!("the process that was started to take over is lost: {error}");
            }
        }
        self.child = None;
    }

    /// Returns true if a process is the one that was started to take over.
    pub(super) fn is(&self, pid: u32) -> bool {
        self.child.as_ref().is_some_and(|child| child.id() == pid)
    }
}

/// The program and arguments of the process that takes over from one with these.
fn command_line(
    mut own: impl Iterator<Item = OsString>,
) -> Option<(OsString, impl Iterator<Item = OsString>)> {
    let program = own.next().filter(|program| !program.is_empty())?;
    let others = own.filter(|argument| argument != OsStr::new(TAKE_OVER));
    Some((program, others.chain([OsString::from(TAKE_OVER)])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_successor_has_the_same_command_line_and_takes_over() {
        let of = |own: &[&str]| {
            let (program, arguments) = command_line(own.iter().map(OsString::from))?;
            let arguments: Vec<_> = arguments.collect();
            Some((program, arguments))
        };
        for own in [
            &["slb", "mux", "--state", "d"][..],
            &["slb", "mux", TAKE_OVER, "--state", "d"],
        ] {
            let (program, arguments) = of(own).expect("a name");
            assert_eq!(program, "slb");
            assert_eq!(arguments, ["mux", "--state", "d", TAKE_OVER]);
        }
        assert!(of(&[]).is_none() && of(&[""]).is_none());
    }

    #[test]
    fn a_process_without_state_starts_none() {
        let mut successor = Successor::default();
        successor.start(false);
        successor.look();
        assert!(successor.child.is_none() && !successor.is(1));
    }
}
