//! Label selectors: `k`, `!k`, `k=v`, `k==v`, `k!=v`, `k in (a,b)`, `k notin (a,b)`, joined by commas.

use super::error::{ApiError, ApiResult};
use super::label::{Labels, is_key, is_value};

/// What must hold for a resource's labels: every requirement.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selector(pub Vec<Requirement>);

/// One requirement. Those with `not` also hold for resources without the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requirement {
    Exists(String),
    Absent(String),
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
}

impl Selector {
    /// Parses; an empty text selects everything.
    pub fn parse(text: &str) -> ApiResult<Self> {
        let mut parser = Parser { rest: text.trim() };
        let mut requirements = Vec::new();
        while !parser.rest.is_empty() {
            requirements.push(parser.requirement()?);
            if !parser.rest.is_empty() {
                parser.expect(",")?;
                if parser.rest.is_empty() {
                    return Err(wrong("it ends with a comma"));
                }
            }
        }
        Ok(Self(requirements))
    }

    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::Exists(key) => labels.contains_key(key),
            Requirement::Absent(key) => !labels.contains_key(key),
            Requirement::In(key, values) => labels.get(key).is_some_and(|v| values.contains(v)),
            Requirement::NotIn(key, values) => labels.get(key).is_none_or(|v| !values.contains(v)),
        })
    }
}

fn wrong(why: &str) -> ApiError {
    ApiError::field("label_selector", format!("cannot be parsed: {why}"))
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn requirement(&mut self) -> ApiResult<Requirement> {
        if self.take("!") {
            return Ok(Requirement::Absent(self.key()?));
        }
        let key = self.key()?;
        if self.take("!=") {
            return Ok(Requirement::NotIn(key, vec![self.value()?]));
        }
        if self.take("==") || self.take("=") {
            return Ok(Requirement::In(key, vec![self.value()?]));
        }
        if self.word("in") {
            return Ok(Requirement::In(key, self.set()?));
        }
        if self.word("notin") {
            return Ok(Requirement::NotIn(key, self.set()?));
        }
        Ok(Requirement::Exists(key))
    }

    fn set(&mut self) -> ApiResult<Vec<String>> {
        self.expect("(")?;
        let mut values = vec![self.value()?];
        while self.take(",") {
            values.push(self.value()?);
        }
        self.expect(")")?;
        Ok(values)
    }

    fn key(&mut self) -> ApiResult<String> {
        let key = self.token(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/'));
        if is_key(key) { Ok(key.to_owned()) } else { Err(wrong(&format!("'{key}' is not a label key"))) }
    }

    fn value(&mut self) -> ApiResult<String> {
        let value = self.token(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        if is_value(value) { Ok(value.to_owned()) } else { Err(wrong(&format!("'{value}' is not a label value"))) }
    }

    fn token(&mut self, belongs: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !belongs(c)).unwrap_or(self.rest.len());
        let (token, rest) = self.rest.split_at(end);
        self.rest = rest.trim_start();
        token
    }

    fn take(&mut self, sign: &str) -> bool {
        match self.rest.strip_prefix(sign) {
            Some(rest) => {
                self.rest = rest.trim_start();
                true
            }
            None => false,
        }
    }

    /// Takes a word that a parenthesis must follow.
    fn word(&mut self, word: &str) -> bool {
        match self.rest.strip_prefix(word).map(str::trim_start) {
            Some(rest) if rest.starts_with('(') => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    fn expect(&mut self, sign: &str) -> ApiResult<()> {
        if self.take(sign) { Ok(()) } else { Err(wrong(&format!("expected '{sign}' before '{}'", self.rest))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn every_operator_selects_what_the_documentation_says() {
        let master = labels(&[("hk-dr/role", "master"), ("env", "")]);
        for (selector, expected) in [
            ("", true),
            ("hk-dr/role", true),
            ("!hk-dr/role", false),
            ("hk-dr/role=master", true),
            ("hk-dr/role==master", true),
            ("hk-dr/role!=master", false),
            ("missing!=x", true),
            ("missing=x", false),
            ("hk-dr/role in (worker, master)", true),
            ("hk-dr/role in(worker)", false),
            ("hk-dr/role notin (worker)", true),
            ("missing notin (a,b)", true),
            ("env=", true),
            (" hk-dr/role = master , !gone ", true),
            ("hk-dr/role=master,env=prod", false),
        ] {
            assert_eq!(Selector::parse(selector).unwrap().matches(&master), expected, "{selector}");
        }
    }

    #[test]
    fn nonsense_is_refused_as_invalid_input() {
        for text in ["=a", "a=b,", "a in b", "a in (b", "a b", "a=b c", "!", "!a=b", "a=$", "/x", "-a", "a=b,,c"] {
            let error = Selector::parse(text).expect_err(text);
            assert_eq!(error.code, "invalid_input", "{text}");
        }
    }

    fn key() -> impl Strategy<Value = String> {
        "([a-z][a-z0-9]{0,5}(\\.[a-z]{1,3})?/)?[a-zA-Z0-9]([a-zA-Z0-9._-]{0,8}[a-zA-Z0-9])?"
    }
    fn value() -> impl Strategy<Value = String> {
        "([a-zA-Z0-9]([a-zA-Z0-9._-]{0,8}[a-zA-Z0-9])?)?"
    }
    fn requirement() -> impl Strategy<Value = Requirement> {
        let values = || prop::collection::vec(value(), 1..4);
        prop_oneof![
            key().prop_map(Requirement::Exists),
            key().prop_map(Requirement::Absent),
            (key(), values()).prop_map(|(k, v)| Requirement::In(k, v)),
            (key(), values()).prop_map(|(k, v)| Requirement::NotIn(k, v)),
        ]
    }
    fn render(requirement: &Requirement, space: &str, equals: &str) -> String {
        match requirement {
            Requirement::Exists(k) => k.clone(),
            Requirement::Absent(k) => format!("!{space}{k}"),
            Requirement::In(k, v) if v.len() == 1 => format!("{k}{space}{equals}{space}{}", v[0]),
            Requirement::NotIn(k, v) if v.len() == 1 => format!("{k}{space}!={space}{}", v[0]),
            Requirement::In(k, v) => format!("{k} in{space}({})", v.join(&format!("{space},{space}"))),
            Requirement::NotIn(k, v) => format!("{k} notin{space}({})", v.join(",")),
        }
    }

    proptest! {
        #[test]
        fn what_is_rendered_parses_to_the_same(
            requirements in prop::collection::vec(requirement(), 0..4),
            space in "[ ]{0,2}",
            double in any::<bool>(),
        ) {
            let equals = if double { "==" } else { "=" };
            let text: Vec<String> = requirements.iter().map(|r| render(r, &space, equals)).collect();
            prop_assert_eq!(Selector::parse(&text.join(",")).unwrap(), Selector(requirements));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,40}") {
            let _ = Selector::parse(&text);
        }

        #[test]
        fn a_requirement_and_its_opposite_never_both_hold(k in key(), v in value(), have in value()) {
            let labels = Labels::from([(k.clone(), have)]);
            let yes = Selector(vec![Requirement::In(k.clone(), vec![v.clone()])]).matches(&labels);
            let no = Selector(vec![Requirement::NotIn(k, vec![v])]).matches(&labels);
            prop_assert_ne!(yes, no);
        }
    }
}
