//! Questions before something is gone for good: asked at a terminal, never of a script.

use std::io::{self, BufRead, IsTerminal, Write};

use super::failure::{Failure, Result};

/// Whether there is someone to be asked; fails where there is not and `yes` was not said.
pub fn must_ask(yes: bool, what: &str) -> Result<bool> {
    if !yes && !io::stdin().is_terminal() {
        return Err(Failure::usage(what).hint("say --yes if that is meant; nothing was done"));
    }
    Ok(!yes)
}

/// Asks at the terminal; only `word` is a yes.
pub fn ask(question: &str, word: &str) -> Result {
    ask_at(question, word, &mut io::stdin().lock(), &mut io::stderr())
}

fn ask_at(question: &str, word: &str, answers: &mut impl BufRead, questions: &mut impl Write) -> Result {
    write!(questions, "{question} ")?;
    questions.flush()?;
    let mut typed = String::new();
    answers.read_line(&mut typed).map_err(|error| Failure::failed(format!("cannot read the answer: {error}")))?;
    if typed.trim() == word {
        Ok(())
    } else {
        Err(Failure::failed(format!("that is not \"{word}\"; nothing was done")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_word_itself_is_a_yes() {
        let ask = |typed: &str| ask_at("Type prod:", "prod", &mut typed.as_bytes(), &mut Vec::new());
        assert_eq!(ask("prod\n"), Ok(()));
        for no in ["", "y\n", "yes\n", "pro\n", "prod2\n"] {
            assert_eq!(ask(no).expect_err(no).code(), 1);
        }
        assert_eq!(must_ask(true, "x"), Ok(false));
    }
}
