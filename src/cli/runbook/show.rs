use std::fmt::Write as _;

use super::find;
use crate::cli::{CliError, Context};
use crate::plan::{Plan, Reversal, Step, point_of_no_return, reversal_in};

pub fn list(context: &Context) -> Result<(), CliError> {
    let mut rows = Vec::new();
    for found in find::all(context)? {
        let from = found.path.as_ref().map_or_else(|| "hk-dr".to_owned(), |p| p.display().to_string());
        // One that is wrong is listed all the same: who looks for it must find it.
        let (summary, problem) = match find::check(&found) {
            Ok(runbook) => (runbook.summary.trim().to_owned(), None),
            Err(error) => (String::new(), Some(error.message)),
        };
        rows.push(serde_json::json!({"name": found.name, "from": from, "summary": summary, "problem": problem}));
    }
    if context.global.json {
        println!("{}", serde_json::json!(rows));
        return Ok(());
    }
    for row in &rows {
        println!("{}  (from {})", row["name"].as_str().unwrap_or_default(), row["from"].as_str().unwrap_or_default());
        match row["problem"].as_str() {
            Some(problem) => println!("    WRONG: {problem}"),
            None => println!("    {}", row["summary"].as_str().unwrap_or_default()),
        }
    }
    Ok(())
}

pub fn text(name: &str, context: &Context) -> Result<(), CliError> {
    let found = find::one(name, context)?;
    if context.global.json {
        println!("{}", serde_json::json!(find::check(&found)?));
    } else {
        print!("{}", found.text);
    }
    Ok(())
}

pub fn validate(name: Option<&str>, context: &Context) -> Result<(), CliError> {
    let found = match name {
        Some(name) => vec![find::one(name, context)?],
        None => find::all(context)?,
    };
    for one in &found {
        find::check(one)?;
    }
    if context.global.json {
        println!("{}", serde_json::json!({"ok": true, "runbooks": found.len()}));
    } else {
        println!("{} runbook{} right", found.len(), if found.len() == 1 { " is" } else { "s are" });
    }
    Ok(())
}

pub fn plan(plan: &Plan, context: &Context) -> Result<(), CliError> {
    let earlier = super::earlier_runs(context, plan);
    if context.global.json {
        let undo: serde_json::Map<String, serde_json::Value> =
            plan.steps.iter().map(|s| (s.id.clone(), undo(plan, s).into())).collect();
        let value = serde_json::json!({
            "plan": plan, "undo": undo, "point_of_no_return": point_of_no_return(plan).map(|s| &s.id),
            "earlier_seconds": earlier,
        });
        println!("{value}");
    } else {
        print!("{}", render(plan, &earlier));
    }
    Ok(())
}

fn undo(plan: &Plan, step: &Step) -> String {
    match reversal_in(plan, step) {
        Reversal::Nothing => "leaves nothing behind".into(),
        Reversal::By(how) => format!("undone by: {how}"),
        Reversal::Never(why) => format!("NO WAY BACK: {why}"),
    }
}

/// The plan as the one who is asked to agree reads it. `earlier`: seconds that runs of it took before, newest last.
pub fn render(plan: &Plan, earlier: &[f64]) -> String {
    let mut text = String::new();
    for finding in &plan.findings {
        let _ = writeln!(text, "• {}", finding.trim());
    }
    for (number, step) in plan.steps.iter().enumerate() {
        let _ = writeln!(text, "{:4}  {}", number + 1, step.title);
        // The runbook's own name as the reason, and that there is nothing to undo, go without saying.
        let reason = (!step.reason.starts_with("runbook ")).then(|| format!("because {}", step.reason));
        let undo = (reversal_in(plan, step) != Reversal::Nothing).then(|| undo(plan, step));
        let notes: Vec<String> = reason.into_iter().chain(undo).collect();
        if !notes.is_empty() {
            let _ = writeln!(text, "        {}", notes.join("; "));
        }
    }
    let _ = writeln!(text, "Plan: {} steps, several at a time where nothing forbids it.", plan.steps.len());
    match plan.steps.iter().position(|s| matches!(reversal_in(plan, s), Reversal::Never(_))) {
        None => text.push_str("Point of no return: none. Every step can be undone; an interrupted run is best finished by `hk-dr resume`.\n"),
        Some(at) => {
            let title = &plan.steps[at].title;
            let _ = writeln!(text, "Point of no return: step {} ({title}). From there `hk-dr resume` goes forward.", at + 1);
        }
    }
    match earlier {
        [] => text.push_str("Duration: not known, it was never run from this machine.\n"),
        [.., last] => {
            let longest = earlier.iter().copied().fold(0.0, f64::max);
            let _ =
                writeln!(text, "Duration: {last:.0} s last time, {longest:.0} s at most in {} runs.", earlier.len());
        }
    }
    text
}
