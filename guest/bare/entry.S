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
	call bare_main
	ud2 /* bare_main doesn't return */
	.size bare_start, . - bare_start

	.section .note.GNU-stack, "", @progbits
