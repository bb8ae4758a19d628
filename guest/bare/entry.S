/*
 * Where every vCPU starts, and the note by which the loader knows the image (vmm/boot.h): RDI = gpa
 * of the FDT, RSI = vCPU number, RSP = top of a stack of its own; CPL 3, IOPL 3, identity paging.
 */
	.section .note.invisor, "a", @note
	.balign 4
	.long 2f - 1f /* bytes of the name */
	.long 4f - 3f /* bytes of the descriptor */
	.long 1       /* type: bare image */
1:	.asciz "invisor"
2:	.balign 4
3:	.long 1       /* version of the protocol */
4:	.balign 4

	.section .text.start, "ax", @progbits
	.globl bare_start
	.type bare_start, @function
bare_start:
	cld
	xorl %ebp, %ebp
	testl %esi, %esi
	jnz 1f
	movl $bare_stack_top, %esp /* vCPU 0's own: see bare.lds */
1:	call bare_main
	ud2 /* bare_main doesn't return */
	.size bare_start, . - bare_start

/*
 * A machine check, in CPL 0: take the address from the bank that has one, clear all banks and MCG_STATUS, without which
 * the next one would be the last. If it is about the instruction that was stopped (EIPV), go on at trap_landed; else what was
 * found is a notice, to be counted. Also reached by trap_look's int3.
 */
	.section .text
	.globl trap_entry
	.type trap_entry, @function
trap_entry:
	pushq %rax
	pushq %rcx
	pushq %rdx
	pushq %rdi
	pushq %rsi
	xorl %esi, %esi /* how many banks had one */
	movl $0x179, %ecx /* MCG_CAP: in its low byte, how many banks */
	rdmsr
	movzbl %al, %edi
	movl $0x401, %ecx /* MC0_STATUS */
1:	decl %edi
	js 3f
	rdmsr
	testl %edx, %edx
	jns 2f /* not valid */
	incl %esi
	incl %ecx /* its address */
	rdmsr
	movl %eax, trap_address
	movl %edx, trap_address + 4
	decl %ecx
	xorl %eax, %eax
	xorl %edx, %edx
	wrmsr
2:	addl $4, %ecx
	jmp 1b
3:	movl $0x17a, %ecx /* MCG_STATUS */
	rdmsr
	movl %eax, %edi
	xorl %eax, %eax
	xorl %edx, %edx
	wrmsr
	testl $2, %edi
	jnz 4f
	addl %esi, trap_notices
	popq %rsi
	popq %rdi
	popq %rdx
	popq %rcx
	popq %rax
	iretq
4:	addq $40, %rsp
	movq $trap_landed, (%rsp) /* the frame: RIP, CS, RFLAGS, RSP, SS */
	andq $-16, 24(%rsp)
	subq $128 + 8, 24(%rsp) /* past the red zone, and as after a call */
	iretq
	.size trap_entry, . - trap_entry

	.section .note.GNU-stack, "", @progbits
