//! Cutting a module's PTX down to one kernel, so that the driver compiles nothing that is not wanted: compiling takes
//! longer than anything else at the start of a job.

/// What a kernel begins with, at the start of a line.
const ENTRY: &str = ".visible .entry ";
/// What it ends with.
const END: &str = "\n}\n";

/// `ptx` without its kernels, but for the one called `name`; `None` if it has no such kernel.
pub(super) fn only(ptx: &str, name: &str) -> Option<String> {
    let mut kept = String::new();
    let mut found = false;
    let mut rest = ptx;
    while let Some(start) = rest.find(ENTRY) {
        let entry = &rest[start..];
        let end = entry.find(END).map_or(entry.len(), |end| end + END.len());
        kept.push_str(&rest[..start]);
        if name_of(entry) == name {
            kept.push_str(&entry[..end]);
            found = true;
        }
        rest = &entry[end..];
    }
    kept.push_str(rest);
    found.then_some(kept)
}

/// Threads of a block of the kernel called `name`, if `ptx` has it.
#[cfg(test)]
pub(super) fn threads(ptx: &str, name: &str) -> Option<u32> {
    let entry = ptx.match_indices(ENTRY).map(|(start, _)| &ptx[start..]).find(|entry| name_of(entry) == name)?;
    entry.split(".maxntid ").nth(1)?.split([',', '\n']).next()?.trim().parse().ok()
}

fn name_of(entry: &str) -> &str {
    let name = entry.strip_prefix(ENTRY).unwrap_or(entry);
    name.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PTX: &str = "// x\n.version 8.4\n\n\t// .globl\ta\n.global .b8 table[3];\n\n.visible .entry a(\n\t.param .u64 p\n)\n\
                       {\n\t{\n\tx;\n\t}\n\tret;\n\n}\n\t// .globl\tab\n.visible .entry ab(\n)\n{\n\tret;\n}\n";

    #[test]
    fn one_kernel_and_all_that_is_not_one() {
        let only_ab = only(PTX, "ab").unwrap();
        assert!(only_ab.contains(".entry ab(") && !only_ab.contains(".entry a(") && only_ab.contains("table[3]"));
        assert!(only_ab.starts_with("// x\n.version 8.4\n") && !only_ab.contains("x;"));
        let only_a = only(PTX, "a").unwrap();
        assert!(only_a.contains("\tx;\n\t}\n\tret;\n\n}\n") && !only_a.contains(".entry ab("));
        assert_eq!(only(PTX, "b"), None);
    }
}
