//! The project's chores: `cargo xtask` lists them. Each is a file here, and a row of the table below.

// A program for users at a terminal: printing is what it is for.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bench;
mod ci;
mod crash;
mod demo;
mod fuzz;
mod options;
mod ptx;
mod shell;
mod synth;

use std::process::ExitCode;

/// One chore.
struct Task {
    /// The words that name it on the command line.
    words: &'static [&'static str],
    options: &'static str,
    about: &'static str,
    run: fn(&[String]) -> anyhow::Result<()>,
}

const TASKS: [Task; 9] = [
    Task {
        words: &["ci"],
        options: "",
        about: "everything that a change must pass: format, kernels, lints, tests, documentation",
        run: ci::run,
    },
    Task {
        words: &["demo"],
        options: "[MODEL.gguf]",
        about: "train a tiny model in ./demo, then export, verify and inspect it; and the same from a GGUF file",
        run: demo::run,
    },
    Task {
        words: &["bench", "export"],
        options: "[--layers N] [--runs N] [--dir DIR] [--python PYTHON] [--qft BINARY]",
        about: "time an export of a Qwen2.5-7B-shaped model against cp and PEFT",
        run: bench::export,
    },
    Task {
        words: &["bench", "gguf"],
        options: "[--layers N] [--runs N] [--dir DIR] [--python PYTHON] [--llama LLAMA_CPP_DIR] [--tokenizer DIR] \
                  [--threads N] [--qft BINARY]",
        about: "time GGUF outputs of such a model against llama-quantize, and against PEFT and llama.cpp's converter",
        run: bench::gguf,
    },
    Task {
        words: &["bench", "gpu"],
        options: "[--layers N] [--runs N] [--dir DIR] [--python PYTHON] [--tokenizer DIR] [--qft BINARY]",
        about: "time exports on an NVIDIA GPU against the processor, a copy with SHA-256, and PEFT on the GPU",
        run: bench::gpu,
    },
    Task {
        words: &["bench", "train"],
        options: "[--layers N] [--rows N] [--length N] [--steps N] [--runs N] [--dir DIR] [--python PYTHON] \
                  [--tokenizer DIR] [--qft BINARY] [--device DEVICE]",
        about: "time LoRA training of such a model on an NVIDIA card against transformers with PEFT; --device cpu tries \
                it out on a tiny one",
        run: bench::train,
    },
    Task {
        words: &["ptx"],
        options: "[--nvrtc LIBNVRTC.so.12]",
        about: "compile every file of kernels to the PTX beside it, with NVRTC 12.4",
        run: ptx::run,
    },
    Task {
        words: &["crash"],
        options: "",
        about: "kill export, gguf, quantize, to-hf and train at every system call that changes the disk, let every such call \
                fail, and print what was left: many minutes",
        run: crash::run,
    },
    Task {
        words: &["fuzz"],
        options: "[SECONDS]",
        about: "run every fuzz target for that long, 60 seconds if not told",
        run: fuzz::run,
    },
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let asks = |task: &&Task| args.len() >= task.words.len() && args.iter().zip(task.words).all(|(a, word)| a == word);
    let Some(task) = TASKS.iter().find(asks) else { return usage(&args) };
    match (task.run)(&args[task.words.len()..]) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Lists the chores: on standard output where that was asked for, else as the answer to what is no chore.
fn usage(args: &[String]) -> ExitCode {
    let row = |Task { words, options, about, .. }: &Task| {
        let line = format!("{} {options}", words.join(" "));
        format!("  {}\n      {about}\n", line.trim_end())
    };
    let text = format!("usage: cargo xtask TASK\n\n{}", TASKS.iter().map(row).collect::<String>());
    match args.first().map(String::as_str) {
        None | Some("help" | "--help" | "-h") => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Some(_) => {
            eprint!("error: there is no task {:?}\n{text}", args.join(" "));
            ExitCode::from(2)
        }
    }
}
