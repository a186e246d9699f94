//! HCL as `terraform fmt` writes it.

use std::fmt::Write as _;

use crate::ports::Labels;

/// A resource being written.
pub(super) struct Block {
    pub kind: &'static str,
    pub name: String,
    pub body: String,
}

impl Block {
    pub fn new(kind: &'static str, name: &str) -> Self {
        Self { kind, name: name.to_owned(), body: String::new() }
    }

    pub fn raw(&mut self, attribute: &str, expression: &str) -> &mut Self {
        let _ = writeln!(self.body, "  {attribute} = {expression}");
        self
    }

    pub fn text(&mut self, attribute: &str, value: &str) -> &mut Self {
        self.raw(attribute, &quoted(value))
    }

    pub fn labels(&mut self, labels: &Labels) -> &mut Self {
        if !labels.is_empty() {
            let lines: String = labels.iter().map(|(k, v)| format!("    {} = {}\n", quoted(k), quoted(v))).collect();
            let _ = write!(self.body, "  labels = {{\n{lines}  }}\n");
        }
        self
    }

    pub fn block(&mut self, kind: &str, lines: &[String]) -> &mut Self {
        let lines: String = lines.iter().map(|line| format!("    {line}\n")).collect();
        let _ = write!(self.body, "  {kind} {{\n{lines}  }}\n");
        self
    }

    /// What holds data or everything else is never destroyed from there.
    pub fn kept(&mut self) -> &mut Self {
        self.lifecycle("")
    }

    pub fn lifecycle(&mut self, more: &str) -> &mut Self {
        self.body.push_str("  lifecycle {\n    prevent_destroy = true\n");
        if !more.is_empty() {
            let _ = writeln!(self.body, "    {more}");
        }
        self.body.push_str("  }\n");
        self
    }
}

/// As `terraform fmt` writes it: the values of neighbouring lines stand below one another.
pub(super) fn aligned(text: &str) -> String {
    // Indentation and name of a line that is an attribute and ends on itself.
    let attribute = |line: &str| {
        let (name, value) = line.split_once(" = ")?;
        let plain = !line.trim_start().starts_with('#') && !value.ends_with('{');
        plain.then(|| (line.len() - line.trim_start().len(), name.len()))
    };
    let lines: Vec<&str> = text.lines().collect();
    let mut out = String::with_capacity(text.len() + text.len() / 8);
    let mut at = 0;
    while at < lines.len() {
        let Some((indent, _)) = attribute(lines[at]) else {
            out.push_str(lines[at]);
            out.push('\n');
            at += 1;
            continue;
        };
        let group: Vec<(&str, usize)> = lines[at..]
            .iter()
            .map_while(|line| attribute(line).filter(|(i, _)| *i == indent).map(|(_, width)| (*line, width)))
            .collect();
        let widest = group.iter().map(|(_, width)| *width).max().unwrap_or(0);
        for (line, width) in &group {
            let (name, value) = line.split_at(*width);
            let _ = writeln!(out, "{name}{}{value}", " ".repeat(widest - width));
        }
        at += group.len();
    }
    out
}

/// HCL's identifiers: letters, digits, dashes and underscores, not beginning with a digit or dash.
pub(super) fn identifier(name: &str) -> String {
    let plain: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '_' }).collect();
    if plain.starts_with(|c: char| c.is_ascii_alphabetic()) { plain } else { format!("r{plain}") }
}

/// A string literal: `${` and `%{` would begin a template.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for (index, c) in text.char_indices() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '$' | '%' if text[index + 1..].starts_with('{') => {
                out.push(c);
                out.push(c);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_is_taken_for_an_expression() {
        assert_eq!(quoted("a\"b\\c ${d} %{e} $f\n"), r#""a\"b\\c $${d} %%{e} $f\n""#);
        assert_eq!(identifier("1-a.b"), "r1-a_b");
    }
}
