//! The code that takes the place of the kernel's in a process with another clock: it asks the kernel by a system call and adds
//! an offset to what wall clocks say. Each routine is entered by a jump from the function it replaces, with that one's
//! arguments, and returns to its caller; as the ABI for C demands, it changes no register but those that a call may change.

use std::arch::global_asm;

/// Where a routine begins in the code, for the function it replaces.
pub(super) struct Routine {
    pub name: &'static str,
    pub at: usize,
}

global_asm!(
    ".pushsection .rodata.hk_lab_clock, \"a\", @progbits",
    // Known to the linker, as the compiler may put what refers to them into another object; not beyond it.
    ".globl hk_lab_clock_begin, hk_lab_clock_gettime, hk_lab_clock_timeofday, hk_lab_clock_time, hk_lab_clock_end",
    ".hidden hk_lab_clock_begin, hk_lab_clock_gettime, hk_lab_clock_timeofday, hk_lab_clock_time, hk_lab_clock_end",
    ".balign 16",
    "hk_lab_clock_begin:",
    // The offset: `Offset::words`. Nanoseconds and microseconds are never negative.
    "80: .quad 0",
    "81: .quad 0",
    "82: .quad 0",
    // int clock_gettime(clockid_t, struct timespec *)
    "hk_lab_clock_gettime:",
    "mov eax, 228",
    "syscall",
    "test eax, eax",
    "jnz 23f",
    // CLOCK_REALTIME, CLOCK_REALTIME_COARSE, CLOCK_TAI
    "test edi, edi",
    "jz 21f",
    "cmp edi, 5",
    "je 21f",
    "cmp edi, 11",
    "jne 23f",
    "21: mov rcx, [rip + 80b]",
    "add [rsi], rcx",
    "mov rcx, [rsi + 8]",
    "add rcx, [rip + 81b]",
    "cmp rcx, 1000000000",
    "jb 22f",
    "sub rcx, 1000000000",
    "inc qword ptr [rsi]",
    "22: mov [rsi + 8], rcx",
    "23: ret",
    // int gettimeofday(struct timeval *, struct timezone *)
    "hk_lab_clock_timeofday:",
    "mov eax, 96",
    "syscall",
    "test eax, eax",
    "jnz 33f",
    "test rdi, rdi",
    "jz 33f",
    "mov rcx, [rip + 80b]",
    "add [rdi], rcx",
    "mov rcx, [rdi + 8]",
    "add rcx, [rip + 82b]",
    "cmp rcx, 1000000",
    "jb 32f",
    "sub rcx, 1000000",
    "inc qword ptr [rdi]",
    "32: mov [rdi + 8], rcx",
    "33: ret",
    // time_t time(time_t *): by the coarse clock, whose nanoseconds decide whether the offset's reach the next second.
    "hk_lab_clock_time:",
    "mov r8, rdi",
    "sub rsp, 24",
    "mov edi, 5",
    "mov rsi, rsp",
    "mov eax, 228",
    "syscall",
    "mov rax, [rsp]",
    "mov rcx, [rsp + 8]",
    "add rsp, 24",
    "add rax, [rip + 80b]",
    "add rcx, [rip + 81b]",
    "cmp rcx, 1000000000",
    "jb 41f",
    "inc rax",
    "41: test r8, r8",
    "jz 42f",
    "mov [r8], rax",
    "42: ret",
    ".balign 8",
    "hk_lab_clock_end:",
    ".popsection",
);

unsafe extern "C" {
    static hk_lab_clock_begin: u8;
    static hk_lab_clock_gettime: u8;
    static hk_lab_clock_timeofday: u8;
    static hk_lab_clock_time: u8;
    static hk_lab_clock_end: u8;
}

/// The code, which begins with the words of its offset; a multiple of eight bytes.
pub(super) fn bytes() -> &'static [u8] {
    let begin = &raw const hk_lab_clock_begin;
    // SAFETY: both labels are in one section, in this order, and what is between them never changes.
    unsafe { std::slice::from_raw_parts(begin, (&raw const hk_lab_clock_end).addr() - begin.addr()) }
}

/// What the code replaces.
pub(super) fn routines() -> [Routine; 3] {
    let at = |label: *const u8| label.addr() - (&raw const hk_lab_clock_begin).addr();
    [
        Routine { name: "__vdso_clock_gettime", at: at(&raw const hk_lab_clock_gettime) },
        Routine { name: "__vdso_gettimeofday", at: at(&raw const hk_lab_clock_timeofday) },
        Routine { name: "__vdso_time", at: at(&raw const hk_lab_clock_time) },
    ]
}
