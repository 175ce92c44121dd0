//! Runs a command under ptrace, and stops it at the k-th of a kind of system calls: kills it there, or lets the call fail.

use std::collections::HashMap;
use std::io::Read;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::libc::{self, c_long, user_regs_struct};
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// A kind of system calls: what changes the disk, or waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Rename,
    Sync,
    Unlink,
    Mkdir,
    Create,
    Write,
}

impl Call {
    pub(crate) const ALL: [Self; 6] = [Self::Rename, Self::Sync, Self::Unlink, Self::Mkdir, Self::Create, Self::Write];

    /// The kind of the call that a thread makes with these registers.
    fn of(regs: &user_regs_struct) -> Option<Self> {
        Some(match regs.orig_rax as c_long {
            libc::SYS_rename | libc::SYS_renameat | libc::SYS_renameat2 => Self::Rename,
            libc::SYS_fsync | libc::SYS_fdatasync | libc::SYS_syncfs | libc::SYS_sync_file_range => Self::Sync,
            libc::SYS_unlink | libc::SYS_unlinkat | libc::SYS_rmdir => Self::Unlink,
            libc::SYS_mkdir | libc::SYS_mkdirat => Self::Mkdir,
            libc::SYS_open if regs.rsi & libc::O_CREAT as u64 != 0 => Self::Create,
            libc::SYS_openat if regs.rdx & libc::O_CREAT as u64 != 0 => Self::Create,
            libc::SYS_creat | libc::SYS_link | libc::SYS_linkat | libc::SYS_symlink | libc::SYS_symlinkat => {
                Self::Create
            }
            // What is said on standard output and standard error is no file's.
            libc::SYS_write | libc::SYS_writev if regs.rdi <= 2 => return None,
            libc::SYS_write
            | libc::SYS_writev
            | libc::SYS_pwrite64
            | libc::SYS_pwritev
            | libc::SYS_pwritev2
            | libc::SYS_copy_file_range
            | libc::SYS_sendfile
            | libc::SYS_ftruncate
            | libc::SYS_truncate
            | libc::SYS_fallocate => Self::Write,
            _ => return None,
        })
    }
}

/// What happens at the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blow {
    /// The process is killed before the call is made.
    Before,
    /// It is killed when the call was made.
    After,
    /// It is killed when a write was half done.
    Torn,
    /// The call is not made, and fails as if the disk had.
    Fails,
    /// So do all later calls of its kind.
    Breaks,
}

/// Where a run is stopped.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Point {
    pub(crate) call: Call,
    /// Which of these calls, from 1.
    pub(crate) number: usize,
    pub(crate) blow: Blow,
}

/// A run that is over.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Calls of each kind that it made, as [`Call::ALL`] orders them.
    pub(crate) counts: [usize; 6],
    /// Whether it came to the point.
    pub(crate) hit: bool,
    /// Its exit code; none if it was killed.
    pub(crate) code: Option<i32>,
    pub(crate) err: String,
}

/// Why nothing can be traced here.
#[derive(Debug)]
pub(crate) struct NotPermitted(pub(crate) String);

/// What is known of a thread.
#[derive(Default)]
struct Thread {
    /// It is in a system call.
    inside: bool,
    /// What is to be done when the call it is in returns.
    pending: Option<Pending>,
}

#[derive(Clone, Copy, PartialEq)]
enum Pending {
    Kill,
    Return(i64),
}

struct Trace<'a> {
    point: Option<&'a Point>,
    /// Whether the filesystem exchanges two names, or keeps one, in one step.
    plain_renames: bool,
    threads: HashMap<Pid, Thread>,
    begun: bool,
    counts: [usize; 6],
    hit: bool,
}

const FLAGS: WaitPidFlag = WaitPidFlag::__WALL.union(WaitPidFlag::__WNOTHREAD);

/// Runs `command` to its end, or to `point`. With `plain_renames` the system knows no flags of `renameat2`.
#[expect(clippy::zombie_processes, reason = "it is waited for by its number, with its threads")]
pub(crate) fn run(command: &Command, point: Option<&Point>, plain_renames: bool) -> Result<Ended, NotPermitted> {
    // The shell stops itself, so that it can be seized before it becomes the command.
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "kill -STOP $$; exec \"$@\"", "sh"]).arg(command.get_program()).args(command.get_args());
    shell.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell.current_dir(command.get_current_dir().unwrap());
    let mut child = shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let leader = Pid::from_raw(child.id().cast_signed());
    let stopped = waitpid(leader, Some(WaitPidFlag::WUNTRACED | FLAGS)).unwrap();
    assert!(matches!(stopped, WaitStatus::Stopped(..)), "{stopped:?}");
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_EXITKILL;
    if let Err(error) = ptrace::seize(leader, options) {
        kill(leader, Signal::SIGKILL).unwrap();
        waitpid(leader, Some(FLAGS)).unwrap();
        return Err(NotPermitted(format!("PTRACE_SEIZE: {error}")));
    }
    kill(leader, Signal::SIGCONT).unwrap();
    let mut trace = Trace { point, plain_renames, threads: HashMap::new(), begun: false, counts: [0; 6], hit: false };
    let code = trace.follow(leader);
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    Ok(Ended { counts: trace.counts, hit: trace.hit, code, err })
}

impl Trace<'_> {
    /// Until the process is over: its exit code, none if it was killed.
    fn follow(&mut self, leader: Pid) -> Option<i32> {
        loop {
            let (pid, signal) = match waitpid(Pid::from_raw(-1), Some(FLAGS)) {
                Ok(WaitStatus::Exited(pid, code)) if pid == leader => return Some(code),
                Ok(WaitStatus::Signaled(pid, ..)) if pid == leader => return None,
                Ok(WaitStatus::PtraceSyscall(pid)) => {
                    if !self.at_call(pid) {
                        kill(leader, Signal::SIGKILL).unwrap();
                        continue;
                    }
                    (pid, None)
                }
                Ok(WaitStatus::PtraceEvent(pid, _, event)) => {
                    self.begun |= event == libc::PTRACE_EVENT_EXEC;
                    (pid, None)
                }
                Ok(WaitStatus::Stopped(pid, signal)) => (pid, Some(signal)),
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(error) => panic!("waitpid: {error}"),
            };
            going_on(ptrace::syscall(pid, signal));
        }
    }

    /// A thread enters or leaves a call. `false`: the process is to be killed here.
    fn at_call(&mut self, pid: Pid) -> bool {
        let thread = self.threads.entry(pid).or_default();
        thread.inside = !thread.inside;
        if !thread.inside {
            return match thread.pending.take() {
                None => true,
                Some(Pending::Kill) => false,
                Some(Pending::Return(value)) => {
                    change(pid, |regs| regs.rax = value.cast_unsigned());
                    true
                }
            };
        }
        if !self.begun {
            return true;
        }
        let Ok(regs) = ptrace::getregs(pid) else { return true };
        let pending = &mut self.threads.get_mut(&pid).unwrap().pending;
        if self.plain_renames && regs.orig_rax as c_long == libc::SYS_renameat2 && regs.r8 != 0 {
            change(pid, |regs| regs.orig_rax = u64::MAX);
            *pending = Some(Pending::Return(-i64::from(libc::EINVAL)));
            return true;
        }
        let Some(call) = Call::of(&regs) else { return true };
        let count = &mut self.counts[call as usize];
        *count += 1;
        let meets = |point: &&Point| {
            point.call == call && (point.number == *count || point.blow == Blow::Breaks && point.number < *count)
        };
        let Some(point) = self.point.filter(meets) else { return true };
        self.hit = true;
        match point.blow {
            Blow::Before => return false,
            Blow::After => *pending = Some(Pending::Kill),
            Blow::Torn => {
                // Of direct writes, whole blocks.
                let half = if regs.rdx >= 8192 { regs.rdx / 2 / 4096 * 4096 } else { regs.rdx / 2 };
                let has_length = [libc::SYS_write, libc::SYS_pwrite64].contains(&(regs.orig_rax as c_long));
                if has_length {
                    change(pid, |regs| regs.rdx = half);
                }
                *pending = Some(Pending::Kill);
            }
            Blow::Fails | Blow::Breaks => {
                change(pid, |regs| regs.orig_rax = u64::MAX);
                *pending = Some(Pending::Return(-i64::from(libc::EIO)));
            }
        }
        true
    }
}

fn change(pid: Pid, change: impl FnOnce(&mut user_regs_struct)) {
    let changed = ptrace::getregs(pid).and_then(|mut regs| {
        change(&mut regs);
        ptrace::setregs(pid, regs)
    });
    going_on(changed);
}

/// A thread may be gone: the process was killed, or ended.
fn going_on(result: nix::Result<()>) {
    assert!(matches!(result, Ok(()) | Err(Errno::ESRCH)), "ptrace: {result:?}");
}
