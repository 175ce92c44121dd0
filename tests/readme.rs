//! The README shows what the program prints: the same labels in the same order, the same sentences around the numbers.

use crate::workbench::Bench;

const README: &str = include_str!("../README.md");

/// The lines that the README shows for the command that ends in `command`, in any of its console blocks.
fn shown(command: &str) -> Vec<&'static str> {
    let blocks = README.split("```console").skip(1).filter_map(|rest| rest.split("```").next());
    let mut lines = blocks.flat_map(str::lines).skip_while(|line| !(line.starts_with("$ ") && line.ends_with(command)));
    assert!(lines.next().is_some(), "the README has no {command}");
    lines.take_while(|line| !line.starts_with("$ ")).filter(|line| !line.is_empty()).collect()
}

/// A line without what depends on the model: words with digits, units, names of files, and how far things are indented.
fn skeleton(line: &str) -> String {
    let units = ["B", "KB,", "KB", "MB", "MB,", "GB", "base", "out"];
    let varies =
        |word: &&str| word.contains(|c: char| c.is_ascii_digit() || "./_-".contains(c)) || units.contains(word);
    line.split_whitespace().filter(|word| !varies(word)).collect::<Vec<_>>().join(" ")
}

fn skeletons<'a>(lines: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut all: Vec<String> = lines.into_iter().map(skeleton).filter(|line| !line.is_empty()).collect();
    all.dedup();
    all
}

#[test]
fn the_console_block_is_what_the_program_prints() {
    let bench = Bench::new();
    bench.base(32);
    bench.adapter("adapter", 32);
    let export = "export --base base --adapter adapter --merge-lora";
    let dry = bench.ok(&format!("{export} --dry-run"));
    let labels = |lines: &[&str]| -> Vec<String> {
        lines.iter().filter(|l| !l.starts_with(' ')).map(|l| l.split_whitespace().next().unwrap().to_owned()).collect()
    };
    assert_eq!(labels(&dry.out.lines().collect::<Vec<_>>()), labels(&shown("--dry-run")));
    let done = bench.ok(export);
    let compare = |printed: &str, readme: Vec<&str>| {
        assert_eq!(skeletons(printed.lines()), skeletons(readme));
    };
    compare(&done.out, shown("--merge-lora"));
    let checked = bench.ok("verify adapter-merged --audit --base base --adapter adapter");
    compare(&checked.out, shown("--adapter lora-smollm2"));
}

#[test]
fn the_gguf_block_is_what_the_program_prints() {
    let bench = crate::gguf::bench(true);
    let done =
        bench.ok("export --base base --adapter adapter --merge-lora --gguf q4_k_m,q8_0 --pre qwen2 --out model-gguf");
    assert_eq!(skeletons(done.out.lines()), skeletons(shown("--out smollm2-gguf")));
    let checked = bench.ok("verify model-gguf --audit --base base --adapter adapter");
    // That of a real model is recognized, and needs no --pre.
    let lines = checked.out.lines().filter(|line| !line.contains("tokenizer.ggml.pre"));
    assert_eq!(skeletons(lines), skeletons(shown("verify smollm2-gguf --audit --base smollm2 --adapter lora-smollm2")));
}
