//! Behaviour, one claim per script: the file's name is the claim, its output is everything that leaves the machine.

use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;

use super::*;

/// One branch. A command is an event's name; what has a log position takes it as `at=`.
struct Script(Branch);

impl goldenscript::Runner for Script {
    type Command = goldenscript::Command;

    fn run(
        &mut self,
        command: &goldenscript::Command,
        _: &goldenscript::Context,
    ) -> Result<String, Box<dyn Error>> {
        let mut arguments = command.consume_args();
        let found = events().into_iter().find(|(name, _)| *name == command.name);
        let (_, mut event) = found.ok_or_else(|| format!("no event {}", command.name))?;
        if let Some(sequence) = arguments.take_key("at") {
            let position = position(sequence.parse()?);
            let (Event::Prepare(at)
            | Event::Decide(_, at)
            | Event::CommitOnePhase(at)
            | Event::Finished(Then::Vote(at))) = &mut event
            else {
                return Err(format!("{} has no position", command.name).into());
            };
            *at = position;
        }
        if arguments.next().is_some() {
            return Err("too many arguments".into());
        }
        let mut output = String::new();
        let actions = self.0.step(event)?;
        actions.iter().try_for_each(|action| writeln!(output, "  {}", show_action(action)))?;
        writeln!(output, "= {}", show_state(self.0.state()))?;
        Ok(output)
    }

    fn start_command(
        &mut self,
        command: &goldenscript::Command,
        _: &goldenscript::Context,
    ) -> Result<String, Box<dyn Error>> {
        Ok(format!("{command}\n"))
    }
}

#[test]
fn every_script_holds() {
    let mut scripts = 0;
    for file in Path::new("src/branch/testscripts").read_dir().unwrap() {
        let path = file.unwrap().path();
        if path.file_name().is_some_and(|name| name != "table") {
            goldenscript::run(&mut Script(Branch::absent()), &path).unwrap();
            scripts += 1;
        }
    }
    assert!(scripts >= 20, "only {scripts} scripts were found");
}
