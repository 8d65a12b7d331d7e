//! The program in the image `gantry/hello`: writes one text and ends. It has no libc, no memory of its
//! own and no code but what is below, so that it runs in an image without any other file.
#![no_std]
#![no_main]

/// What a first-time user reads.
static TEXT: [u8; include_bytes!("hello.txt").len()] = *include_bytes!("hello.txt");
static TEXT_LEN: usize = TEXT.len();

// write(1, TEXT, TEXT_LEN) until all is written, then exit_group(0); exit_group(1) if it cannot be.
#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(
    ".globl _start",
    "_start:",
    "    lea rsi, [rip + {text}]",
    "    mov rdx, [rip + {len}]",
    "2:  mov eax, 1",
    "    mov edi, 1",
    "    syscall",
    "    test rax, rax",
    "    jle 3f",
    "    add rsi, rax",
    "    sub rdx, rax",
    "    jnz 2b",
    "    xor edi, edi",
    "    jmp 4f",
    "3:  mov edi, 1",
    "4:  mov eax, 231",
    "    syscall",
    "    ud2",
    text = sym TEXT,
    len = sym TEXT_LEN,
);

#[cfg(target_arch = "aarch64")]
core::arch::global_asm!(
    ".globl _start",
    "_start:",
    "    adrp x1, {text}",
    "    add x1, x1, :lo12:{text}",
    "    adrp x2, {len}",
    "    ldr x2, [x2, :lo12:{len}]",
    "2:  mov x0, 1",
    "    mov x8, 64",
    "    svc 0",
    "    cmp x0, 0",
    "    ble 3f",
    "    add x1, x1, x0",
    "    subs x2, x2, x0",
    "    bne 2b",
    "    mov x0, 0",
    "    b 4f",
    "3:  mov x0, 1",
    "4:  mov x8, 94",
    "    svc 0",
    text = sym TEXT,
    len = sym TEXT_LEN,
);

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
