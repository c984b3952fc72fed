//! Finds lines of Rust that are wider than rustfmt's limit. rustfmt itself leaves comments, macros and what it cannot
//! break as they are.

use super::files;
use anyhow::Result;
use proc_macro2::{TokenStream, TokenTree};
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Most columns of a line, as in `rustfmt.toml`.
pub(crate) const MAX: usize = 120;

/// Files that bindgen writes.
const GENERATED: &[&str] = &["efa-sys/src/bindings.rs"];

/// A line that is too wide.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wide {
    pub(crate) path: PathBuf,
    /// Its number, from 1.
    pub(crate) line: usize,
    pub(crate) columns: usize,
}

/// Returns all wide lines of the project's Rust files.
pub(crate) fn find(project: &Path) -> Result<Vec<Wide>> {
    let files = files::read(project, "rs")?.into_iter();
    let written = files.filter(|(path, _)| GENERATED.iter().all(|generated| path != Path::new(generated)));
    let found = written.flat_map(|(path, text)| {
        wide(&text).into_iter().map(move |(line, columns)| Wide { path: path.clone(), line, columns })
    });
    Ok(found.collect())
}

/// Returns the numbers and the columns of a text's wide lines, without those that cannot be narrower.
fn wide(text: &str) -> Vec<(usize, usize)> {
    let wide = text.lines().zip(1..).map(|(line, number)| (line, number, line.chars().count()));
    let mut wide: Vec<(&str, usize, usize)> = wide.filter(|(_, _, columns)| *columns > MAX).collect();
    if !wide.is_empty() {
        let strings = strings(text);
        wide.retain(|(line, number, _)| match line.trim_start().strip_prefix("//") {
            Some(comment) => !is_unbreakable(comment),
            None => !is_string(line, strings.get(number).map_or(&[], Vec::as_slice)),
        });
    }
    wide.into_iter().map(|(_, number, columns)| (number, columns)).collect()
}

/// Returns `true` for a row of a table, and for an address that stands alone or behind its label.
fn is_unbreakable(comment: &str) -> bool {
    let text = comment.trim_start_matches(['/', '!']).trim();
    let is_row = comment.starts_with(['/', '!']) && text.len() > 1 && text.starts_with('|') && text.ends_with('|');
    let is_address = |text: &str| text.contains("://") && !text.contains(char::is_whitespace);
    is_row
        || is_address(text)
        || text.split_once("]: ").is_some_and(|(label, text)| label.starts_with('[') && is_address(text))
}

/// Returns `true` if a string is what makes a line wide: nothing but punctuation stands outside of strings beyond the
/// limit.
fn is_string(line: &str, strings: &[Range<usize>]) -> bool {
    let beyond = line.chars().enumerate().skip(MAX);
    let mut outside = beyond.filter(|(column, _)| !strings.iter().any(|string| string.contains(column)));
    !strings.is_empty() && !outside.any(|(_, char)| char.is_alphanumeric())
}

/// Returns the columns that string literals take in each line, from 0.
fn strings(text: &str) -> HashMap<usize, Vec<Range<usize>>> {
    fn walk(tokens: TokenStream, found: &mut HashMap<usize, Vec<Range<usize>>>) {
        for token in tokens {
            match token {
                TokenTree::Group(group) => walk(group.stream(), found),
                TokenTree::Literal(literal) if literal.to_string().contains('"') => {
                    let (start, end) = (literal.span().start(), literal.span().end());
                    for line in start.line..=end.line {
                        let from = if line == start.line { start.column } else { 0 };
                        let to = if line == end.line { end.column } else { usize::MAX };
                        found.entry(line).or_default().push(from..to);
                    }
                }
                _ => {}
            }
        }
    }
    let mut found = HashMap::new();
    walk(TokenStream::from_str(text).unwrap_or_default(), &mut found);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line of so many columns, of words behind a start.
    fn words(start: &str, columns: usize) -> String {
        let mut line = start.to_owned();
        while line.chars().count() < columns {
            line.push(if line.chars().count() % 7 == 6 && line.chars().count() + 1 < columns { ' ' } else { 'ü' });
        }
        line
    }

    #[test]
    fn columns_are_characters_and_the_limit_is_allowed() {
        let text = format!("{}\n{}\n    {}\n", words("// ", 120), words("// ", 121), words("/// ", 150));
        assert_eq!(wide(&text), [(2, 121), (3, 154)]);
    }

    #[test]
    fn a_row_of_a_documented_table_may_be_wide() {
        let row = format!("{} |", words("//! | ", 140));
        assert_eq!(wide(&row), []);
        assert_eq!(wide(&row.replace("//!", "//")), [(1, 141)], "an ordinary comment is no table");
        assert_eq!(wide(&words("//! | ", 140)), [(1, 140)], "this is no row");
    }

    #[test]
    fn an_address_may_be_wide_and_a_sentence_with_one_may_not() {
        let address = format!("https://example.org/{}", "a".repeat(120));
        assert_eq!(wide(&format!("// {address}\n/// [label]: {address}\n")), []);
        assert_eq!(wide(&format!("// See {address}\n")), [(1, 147)]);
    }

    #[test]
    fn a_string_may_be_wide_and_code_beside_it_may_not() {
        let long = "a".repeat(120);
        assert_eq!(wide(&format!("const A: &str = f(\"{long}\");\n")), []);
        assert_eq!(wide(&format!("const A: &str = \"\n{long}a\n\";\n")), []);
        assert_eq!(wide(&format!("const A: &str = f(\"{}\", name_behind_it);\n", &long[..90])), [(1, 128)]);
        assert_eq!(wide(&format!("const {long}: u8 = 0;\n")), [(1, 135)]);
        assert_eq!(wide(&format!("const {}: u8 = 0;\n", &long[..106])), [(1, 121)]);
        assert_eq!(wide(&format!("const A: &str = \"a\"; // {}\n", words("", 110))), [(1, 134)]);
    }
}
