//! The lab without hk-dr, for the lab's own tests: `hk-labd daemon LAUNCH` and `hk-labd exec LAB PLACE CMD…`, where a
//! place is `operator`, `internet`, or a server's name after `server:`.

use std::process::ExitCode;

use hk_lab::exec::Place;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let status = match words.as_slice() {
        ["daemon", launch] => hk_lab::control::launched(launch),
        ["exec", lab, place, ..] if words.len() > 3 => {
            let place = match place.strip_prefix("server:") {
                Some(name) => Place::Server(name.to_owned()),
                None => Place::Outside((*place).to_owned()),
            };
            hk_lab::exec::exec(lab, &place, &arguments[3..]).unwrap_or_else(|error| {
                eprintln!("error: {error}");
                1
            })
        }
        _ => {
            eprintln!("usage: hk-labd daemon LAUNCH | hk-labd exec LAB PLACE CMD…");
            3
        }
    };
    ExitCode::from(u8::try_from(status).unwrap_or(1))
}
