//! The spellings of roles, and the keys that hold a message's role and content.

use super::conversation::{Flaw, Role};
use crate::error::escaped;

/// Keys of a message that name its role; the first that is there counts.
pub(super) const ROLE_KEYS: [&str; 2] = ["role", "from"];
/// Keys of a message that hold its content.
pub(super) const CONTENT_KEYS: [&str; 2] = ["content", "value"];
/// Keys of a pair `{human, assistant}` that hold the user's turn.
pub(super) const PAIR_USER_KEYS: [&str; 2] = ["user", "human"];
/// Keys of a pair that hold the assistant's turn.
pub(super) const PAIR_ASSISTANT_KEYS: [&str; 3] = ["assistant", "gpt", "bot"];

/// Every spelling. ms-swift's (`dataset/preprocessor/core.py`), and of the `OpenAI` API `developer` (a system message) and
/// `function` (a tool's answer).
const SPELLINGS: [(&str, Role); 15] = [
    ("system", Role::System),
    ("developer", Role::System),
    ("user", Role::User),
    ("human", Role::User),
    ("assistant", Role::Assistant),
    ("gpt", Role::Assistant),
    ("bot", Role::Assistant),
    ("tool_call", Role::ToolCall),
    ("function_call", Role::ToolCall),
    ("tool", Role::Tool),
    ("tool_response", Role::Tool),
    ("function_response", Role::Tool),
    ("observation", Role::Tool),
    ("observations", Role::Tool),
    ("function", Role::Tool),
];

impl Role {
    /// The role that `spelling` names, in any case and with dashes or underscores.
    pub(super) fn parse(spelling: &str) -> Result<Self, Flaw> {
        let normal = spelling.to_ascii_lowercase().replace('-', "_");
        SPELLINGS.iter().find(|(known, _)| *known == normal).map(|(_, role)| *role).ok_or_else(|| {
            Flaw::new(
                format!("the role `{}` is unknown", escaped(spelling)),
                "use system, user, assistant, tool_call or tool (or human, gpt, function_call, observation)",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_spelling_in_any_case_and_refuses_others() {
        for (spelling, role) in SPELLINGS {
            assert_eq!(Role::parse(&spelling.to_uppercase().replace('_', "-")), Ok(role));
        }
        let flaw = Role::parse("narrator\u{1b}").unwrap_err();
        assert_eq!(flaw.problem, "the role `narrator\\u{1b}` is unknown");
    }
}
