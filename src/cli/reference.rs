//! The reference page of the command line, `docs/reference/cli.md`, generated from the flags. A test holds the
//! committed page against them; `QFT_BLESS=1 cargo test` writes it again.

#[cfg(test)]
mod tests {
    use clap::{Command, CommandFactory};
    use std::fmt::Write;
    use std::path::Path;

    const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/cli.md");

    fn page() -> String {
        let mut text = String::from(
            "# Command line\n\nGenerated from the program's own help; a test keeps it true. Long flags may be written with \
             underscores.\n",
        );
        let mut root = crate::cli::Cli::command().term_width(100);
        root.build();
        section(&mut root.clone(), &mut text);
        for command in root.get_subcommands_mut().filter(|c| c.get_name() != "help") {
            section(command, &mut text);
        }
        text
    }

    fn section(command: &mut Command, text: &mut String) {
        let name = command.get_bin_name().unwrap_or("qft").to_owned();
        let help = command.render_long_help().to_string();
        let help: Vec<&str> = help.lines().map(str::trim_end).collect();
        let _ = write!(text, "\n## {name}\n\n```text\n{}\n```\n", help.join("\n").trim_end());
    }

    #[test]
    fn the_committed_page_is_what_the_flags_say() {
        let fresh = page();
        if std::env::var_os("QFT_BLESS").is_some() {
            std::fs::create_dir_all(Path::new(PAGE).parent().unwrap()).unwrap();
            std::fs::write(PAGE, &fresh).unwrap();
        }
        let committed = std::fs::read_to_string(PAGE).unwrap_or_default();
        assert!(committed == fresh, "docs/reference/cli.md is out of date; run: QFT_BLESS=1 cargo test reference");
    }
}
