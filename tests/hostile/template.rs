//! Chat templates of strangers: deep, endless, growing. Jinja is a language, and a model's file is its program.

use super::bounded::{Kind, TRAIN, all_end, trainee};
use crate::workbench::Bench;

/// Bytes of a template that are read.
const MOST: usize = 256 << 10;

fn bench() -> Bench {
    trainee("the quick", "brown fox")
}

fn kind(name: impl Into<String>, template: String, mentions: &'static str) -> Kind {
    let put = move |bench: &Bench| {
        bench.write("base/chat_template.jinja", &template);
    };
    Kind { name: name.into(), put: Box::new(put), mentions }
}

/// Each of `rows`: a name, a template, what the message has to mention.
fn kinds<'t>(rows: impl IntoIterator<Item = (&'t str, &'static str)>) -> Vec<Kind> {
    rows.into_iter().map(|(template, mentions)| kind(template, template.to_owned(), mentions)).collect()
}

/// As many of `unit` as a template may hold.
fn chain(unit: &str) -> String {
    format!("{{{{ {}1 }}}}", unit.repeat((MOST - 8) / unit.len()))
}

fn nested(open: &str, close: &str) -> String {
    let levels = MOST / (open.len() + close.len());
    open.repeat(levels) + &close.repeat(levels)
}

#[test]
fn deep_sources_end_in_an_error() {
    let units = [
        "-",
        "not ",
        "1+",
        "a.",
        "[",
        "(",
        "{'a':",
        "1 if 1 else ",
        "2**1//",
        "1 and ",
        "0 or ",
        "1<",
        "1 in ",
        "1==",
        "1%",
    ];
    let mut all: Vec<Kind> = units.iter().map(|unit| kind(*unit, chain(unit), "")).collect();
    let blocks = [
        ("{% if 1 %}", "{% endif %}"),
        ("{% for a in [1] %}", "{% endfor %}"),
        ("{% with %}", "{% endwith %}"),
        ("{% macro m() %}", "{% endmacro %}"),
        ("{% set a %}", "{% endset %}"),
        ("{% filter e %}", "{% endfilter %}"),
        ("{% generation %}", "{% endgeneration %}"),
    ];
    all.extend(blocks.map(|(open, close)| kind(open, nested(open, close), "")));
    let tails = ["[0]", "()", "|e", " is odd", ".a"];
    all.extend(tails.map(|tail| kind(tail, format!("{{{{ a{} }}}}", tail.repeat((MOST - 8) / tail.len())), "")));
    all.push(kind("elif", format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(20_000)), ""));
    all.push(kind("~", format!("{{{{ {}1 }}}}", "1~".repeat(9_000)), ""));
    all.push(kind("closed lists", format!("{{{{ {}1{} }}}}", "[".repeat(MOST / 2 - 8), "]".repeat(MOST / 2 - 8)), ""));
    all.push(kind("comments", "{#".repeat(MOST / 2), "chat template"));
    all.push(kind("unclosed", "{{".repeat(MOST / 2), "can't be read"));
    all.push(kind("one literal", format!("{{{{ '{}' }}}}", "x".repeat(MOST - 16)), ""));
    all.push(kind("too long", "x".repeat(MOST + 1), "more than 262144"));
    all_end(bench, TRAIN, &all);
}

#[test]
fn deep_values_end_in_an_error() {
    let deep = "{% set ns = namespace(s=[]) %}{% for i in range(90000) %}{% for j in range(4) %}{% set ns.s = [ns.s] %}\
                {% endfor %}{% endfor %}";
    let ends = [
        "{{ ns.s }}",
        "{{ ns.s | tojson }}",
        "{{ ns.s == [ns.s] }}",
        "{{ [ns.s, ns.s] | sort }}",
        "{{ ns.s in [ns.s] }}",
        "{{ [ns.s] | join }}",
        "{{ [ns.s, ns.s] | unique | list }}",
        "{{ '%s' | format(ns.s) }}",
        "{{ ns.s ~ '' }}",
        "{{ raise_exception(ns.s) }}",
        "",
    ];
    let all: Vec<Kind> = ends.iter().map(|end| kind(*end, format!("{deep}{end}"), "")).collect();
    all_end(bench, TRAIN, &all);
}

#[test]
fn what_grows_ends_in_an_error() {
    let expressions = [
        "'%999999999d' | format(1)",
        "'%999999999s' | format('x')",
        "'%*d' | format(999999999, 1)",
        "'%.999999999f' | format(1.5)",
        "'{:999999999}'.format(1)",
        "'x' * 999999999",
        "('x' * 99999) * 99999",
        "([1] * 999999999) | list | length",
        "range(999999999) | list | length",
        "'x' | center(999999999)",
        "'a\nb' | indent(999999999)",
        "'x'.zfill(999999999)",
        "'x'.ljust(999999999)",
        "'x'.center(999999999)",
        "'\t'.expandtabs(999999999)",
        "[1] | tojson(indent=999999999)",
        "[1] | batch(999999999, 'x') | list",
        "[1] | slice(999999999, 'x') | list",
        "('a' * 99999) | replace('a', 'b' * 99999) | length",
        "([1] * 9999999) | join('xxxxxxxxxxxxxxxx') | length",
        "('9' * 200000) | int",
        "2 ** 999999999",
        "1 | round(999999999)",
        "('a ' * 999999).split(' ') | length",
        "('<' * 999999) | e | length",
        "('/ ' * 999999) | urlencode | length",
        "('\\u0001' * 999999) | tojson | length",
        "('a' * 99999) in ('b' * 999999)",
        "([{'a': 1}] * 999999) | groupby('a') | length",
        "strftime_now('%999999999d')",
        "strftime_now('%c' * 99999) | length",
        "range(99999999)[::2][::2] | list | length",
    ];
    let mut all: Vec<Kind> = expressions
        .iter()
        .map(|expression| kind(*expression, format!("{{{{ {expression} }}}}"), "no row is left"))
        .collect();
    let long = format!("{{% for i in range(16000) %}}{}{{% endfor %}}", "y".repeat(65_000));
    all.push(kind("a gigabyte", long, "engine ran out of fuel"));
    let twice = |start: &str, step: &str| {
        format!(
            "{{% set ns = namespace(s={start}) %}}{{% for i in range(40) %}}{step}{{% endfor %}}{{{{ ns.s | length }}}}"
        )
    };
    for (start, step) in [
        ("'x' * 1000", "{% set ns.s = ns.s ~ ns.s %}"),
        ("'x'", "{% set ns.s = ns.s.replace('x', 'xx') %}"),
        ("'x'", "{% set y %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = y %}"),
        ("(1,)", "{% set ns.s = ns.s + ns.s %}"),
        ("[1]", "{% set ns.s = (ns.s | list) + (ns.s | list) %}"),
    ] {
        all.push(kind(step, twice(start, step), "engine ran out of fuel"));
    }
    all_end(bench, TRAIN, &all);
}

/// What takes no fuel is left behind when its time is over.
#[test]
fn lists_that_double_end_in_an_error() {
    let lists =
        "{% set ns = namespace(s=[1] * 1000) %}{% for i in range(40) %}{% set ns.s = ns.s + ns.s %}{% endfor %}";
    let pairs = "{% set ns = namespace(s=[1], t=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}\
                 {% set ns.t = [ns.t, ns.t] %}{% endfor %}";
    let all = [
        format!("{lists}{{{{ ns.s | length }}}}"),
        format!("{pairs}{{{{ ns.s == ns.t }}}}"),
        format!("{pairs}{{{{ [ns.s, ns.t] | sort }}}}"),
        format!("{pairs}{{{{ ns.s }}}}"),
    ];
    let all = all.map(|template| kind(template.clone(), template, "the chat template takes longer than 20 s"));
    all_end(bench, TRAIN, &all);
}

#[test]
fn what_never_ends_is_stopped_and_what_is_wrong_is_said() {
    let loops = "{% for a in range(9999) %}".repeat(3) + &"{% endfor %}".repeat(3);
    let mut all = kinds([
        (loops.as_str(), "fuel"),
        ("{% set s = 'a ' * 100000 %}{% for i in range(100000) %}{% set x = s.split(' ') %}{% endfor %}", "fuel"),
        ("{% set s = ' ' * 1000000 %}{% for i in range(100000) %}{% set x = s.strip() %}{% endfor %}", "fuel"),
        ("{% for a in range(99999) %}{% set x = range(99999) | list | sort | join(',') %}{% endfor %}", "fuel"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "rejects it"),
        ("{% for a in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}", "rejects it"),
        ("{% include 'default' %}", "rejects it"),
        ("{% extends 'default' %}", ""),
        ("{% import 'default' as d %}{{ d }}", ""),
        ("{{ raise_exception('no') }}", "rejects it: no"),
        ("{{ raise_exception('\\x1b[2J') }}", "rejects it"),
        ("", "leaves out the words"),
        ("\0", "leaves out the words"),
        ("{% if %}", "can't be read"),
        ("{{ 1 | nope }}", "nope"),
        ("{{ nope() }}", "nope"),
        ("{% set messages = 1 %}x", "leaves out the words"),
        ("{% for m in messages %}{{ m.content }}{{ 1 / 0 }}{% endfor %}", "rejects it"),
    ]);
    all.push(kind("raises a megabyte", "{{ raise_exception('no' * 999999) }}".to_owned(), "rejects it"));
    all_end(bench, TRAIN, &all);
}
