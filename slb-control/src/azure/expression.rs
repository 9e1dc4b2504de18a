//! Expressions of ARM templates as trees: `concat('a', parameters('b').c[0])`.
//!
//! The text between the brackets is split into tokens, and one function for each line of the
//! grammar parses them:
//! ```text
//!  expression = primary { "." word | "[" expression "]" }
//!  primary    = string | number | word [ "." word ] "(" [ expression { "," expression } ] ")"
//! ```
//! A word with a dot is a template's own function. Source: "Syntax and expressions in ARM templates",
//! Azure Resource Manager's documentation.

use std::fmt;

/// Deepest nesting of an expression.
const DEEPEST: u32 = 64;

/// An expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expression {
    Text(String),
    Number(i64),
    Call {
        function: String,
        arguments: Vec<Self>,
    },
    Member {
        of: Box<Self>,
        name: String,
    },
    Index {
        of: Box<Self>,
        index: Box<Self>,
    },
}

/// A text that does not follow the grammar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    /// Position of the fault in characters, counted from 1.
    at: usize,
    expected: &'static str,
    got: String,
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, expected, got } = self;
        write!(f, "character {at}: expected {expected}, got {got}")
    }
}

/// Parses an expression, including the brackets around it.
///
/// # Errors
/// The first syntax error.
pub(super) fn parse(text: &str) -> Result<Expression, SyntaxError> {
    let mut parser = Parser {
        tokens: tokens(text)?,
        next: 0,
        end: text.chars().count() + 1,
    };
    parser.require(&Kind::Mark('['), "\"[\"")?;
    let expression = parser.expression(0)?;
    parser.require(&Kind::Mark(']'), "\"]\"")?;
    match parser.peek() {
        None => Ok(expression),
        Some(_) => Err(parser.error("the end of the expression")),
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Word(String),
    Number(i64),
    Text(String),
    Mark(char),
}

#[derive(Clone, Debug)]
struct Token {
    kind: Kind,
    /// Position of the first character, counted from 1.
    at: usize,
}

fn tokens(text: &str) -> Result<Vec<Token>, SyntaxError> {
    let mut tokens = Vec::new();
    let mut rest = text.chars().zip(1..).peekable();
    while let Some((first, at)) = rest.next() {
        let kind = match first {
            c if c.is_whitespace() => continue,
            '\'' => {
                let mut text = String::new();
                loop {
                    match rest.next() {
                        // Two quotes are one.
                        Some(('\'', _)) if rest.next_if(|&(c, _)| c == '\'').is_some() => {
                            text.push('\'');
                        }
                        Some(('\'', _)) => break Kind::Text(text),
                        Some((c, _)) => text.push(c),
                        None => {
                            return Err(SyntaxError {
                                at,
                                expected: "a quote at the end of the string",
                                got: "the end".to_owned(),
                            });
                        }
                    }
                }
            }
            c if c.is_ascii_digit() || c == '-' => {
                let mut digits = String::from(c);
                while let Some((c, _)) = rest.next_if(|(c, _)| c.is_ascii_digit()) {
                    digits.push(c);
                }
                Kind::Number(digits.parse().map_err(|_| SyntaxError {
                    at,
                    expected: "an integer of 64 bits",
                    got: format!("{digits:?}"),
                })?)
            }
            c if c.is_alphabetic() || c == '_' => {
                let mut word = String::from(c);
                let is_more = |&(c, _): &(char, usize)| c.is_alphanumeric() || c == '_';
                while let Some((c, _)) = rest.next_if(is_more) {
                    word.push(c);
                }
                Kind::Word(word)
            }
            mark => Kind::Mark(mark),
        };
        tokens.push(Token { kind, at });
    }
    Ok(tokens)
}

struct Parser {
    tokens: Vec<Token>,
    next: usize,
    /// The position after the last character.
    end: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Kind> {
        self.tokens.get(self.next).map(|token| &token.kind)
    }

    fn eat(&mut self, kind: &Kind) -> bool {
        let is_next = self.peek() == Some(kind);
        self.next += usize::from(is_next);
        is_next
    }

    fn require(&mut self, kind: &Kind, expected: &'static str) -> Result<(), SyntaxError> {
        if self.eat(kind) {
            Ok(())
        } else {
            Err(self.error(expected))
        }
    }

    fn word(&mut self, expected: &'static str) -> Result<String, SyntaxError> {
        match self.peek() {
            Some(Kind::Word(word)) => {
                let word = word.clone();
                self.next += 1;
                Ok(word)
            }
            _ => Err(self.error(expected)),
        }
    }

    fn error(&self, expected: &'static str) -> SyntaxError {
        let token = self.tokens.get(self.next);
        SyntaxError {
            at: token.map_or(self.end, |token| token.at),
            expected,
            got: match token.map(|token| &token.kind) {
                None => "the end".to_owned(),
                Some(Kind::Word(word)) => format!("{word:?}"),
                Some(Kind::Number(number)) => number.to_string(),
                Some(Kind::Text(text)) => format!("'{text}'"),
                Some(Kind::Mark(mark)) => format!("{:?}", mark.to_string()),
            },
        }
    }

    fn expression(&mut self, depth: u32) -> Result<Expression, SyntaxError> {
        if depth > DEEPEST {
            return Err(self.error("at most 64 levels of nesting"));
        }
        let mut value = self.primary(depth)?;
        loop {
            if self.eat(&Kind::Mark('.')) {
                let name = self.word("a member's name")?;
                value = Expression::Member {
                    of: Box::new(value),
                    name,
                };
            } else if self.eat(&Kind::Mark('[')) {
                let index = Box::new(self.expression(depth + 1)?);
                self.require(&Kind::Mark(']'), "\"]\"")?;
                value = Expression::Index {
                    of: Box::new(value),
                    index,
                };
            } else {
                return Ok(value);
            }
        }
    }

    fn primary(&mut self, depth: u32) -> Result<Expression, SyntaxError> {
        match self.peek() {
            Some(Kind::Text(text)) => {
                let text = text.clone();
                self.next += 1;
                Ok(Expression::Text(text))
            }
            Some(&Kind::Number(number)) => {
                self.next += 1;
                Ok(Expression::Number(number))
            }
            Some(Kind::Word(word)) => {
                let mut function = word.clone();
                self.next += 1;
                if self.eat(&Kind::Mark('.')) {
                    function.push('.');
                    function.push_str(&self.word("a function's name")?);
                }
                self.require(&Kind::Mark('('), "\"(\" behind a function's name")?;
                let arguments = self.arguments(depth)?;
                Ok(Expression::Call {
                    function,
                    arguments,
                })
            }
            _ => Err(self.error("a string, a number or a function")),
        }
    }

    fn arguments(&mut self, depth: u32) -> Result<Vec<Expression>, SyntaxError> {
        let mut all = Vec::new();
        if self.eat(&Kind::Mark(')')) {
            return Ok(all);
        }
        loop {
            all.push(self.expression(depth + 1)?);
            if self.eat(&Kind::Mark(')')) {
                return Ok(all);
            }
            self.require(&Kind::Mark(','), "\",\" or \")\"")?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_and_indexes_bind_from_the_left() {
        let parsed = parse("[ a.b( 'it''s', -7 ).c[d()][0] ]").expect("an expression");
        let text = format!("{parsed:?}");
        let order = ["a.b", "it's", "-7", "\"c\"", "\"d\"", "Number(0)"];
        let places: Vec<_> = order.iter().map(|part| text.find(part)).collect();
        assert!(places.iter().all(Option::is_some), "{text}");
        assert!(places.is_sorted(), "{text}");
    }

    #[test]
    fn errors_say_which_character() {
        for (text, expected) in [
            (
                "[concat('a'",
                "character 12: expected \",\" or \")\", got the end",
            ),
            (
                "[concat('a']",
                "character 12: expected \",\" or \")\", got \"]\"",
            ),
            (
                "[concat('a)]",
                "character 9: expected a quote at the end of the string, got the end",
            ),
            (
                "[]",
                "character 2: expected a string, a number or a function, got \"]\"",
            ),
            ("[a() b]", "character 6: expected \"]\", got \"b\""),
            (
                "[a()] x]",
                "character 7: expected the end of the expression, got \"x\"",
            ),
            (
                "[a]",
                "character 3: expected \"(\" behind a function's name, got \"]\"",
            ),
            (
                "[99999999999999999999]",
                "character 2: expected an integer of 64 bits",
            ),
            ("[-]", "character 2: expected an integer of 64 bits"),
        ] {
            let error = parse(text).expect_err("no expression").to_string();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
        let deep = format!("[{}0{}]", "int(".repeat(100), ")".repeat(100));
        let error = parse(&deep).expect_err("too deep").to_string();
        assert!(error.contains("64 levels"), "{error}");
    }
}
