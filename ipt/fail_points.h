/*
 * The failpoints: FAIL_POINTS(X) is X(ID, "name", KIND, usual, "sentence") for each. docs/FAULTS.md says how they are used.
 *
 * KIND   what `return` means there                         usual: what it is without an argument
 *   ERROR  the call fails with that errno, and isn't made    an errno
 *   RESULT the request is made, and its answer is changed    an errno
 *   BYTES  so many bytes go through at most, the rest not    a number
 *   STEP   nothing: the point is there to die, wait or print at
 *   DEATH  the last holder of the lock is taken for dead
 */
#ifndef IPT_FAIL_POINTS_H
#define IPT_FAIL_POINTS_H

#define FAIL_POINTS(X)                                                                             \
	/* the table */                                                                            \
	X(IPT_STEP, "ipt.step", STEP, 0,                                                           \
	  "a step of a change to the table is done, the next isn't")                               \
	X(IPT_LOCK, "ipt.lock", DEATH, 0, "a lock of the table is taken: repair what it protects") \
	X(IPT_CREATE, "ipt.create", ERROR, EMFILE, "the table is made")                            \
	X(IPT_ALLOC, "ipt.alloc", ERROR, ENOMEM, "frames are taken from the pool")                 \
	X(IPT_MAP, "ipt.map", ERROR, ENOMEM, "frames get their place in the index")                \
	X(IPT_OUT, "ipt.out", ERROR, ENOMEM, "a page's place in the store is noted in a slot")     \
	X(IPT_VM_ADD, "ipt.vm_add", ERROR, ENOSPC, "the registry takes in a VM")                   \
	X(IPT_FREEZE, "ipt.freeze", ERROR, ENOSPC, "the registry makes a VM a template")           \
	X(IPT_GROW, "ipt.grow", ERROR, ENOMEM,                                                     \
	  "memory to spread a stripe of the index over more lines")                                \
	/* KVM */                                                                                  \
	X(KVM_OPEN, "kvm.open", ERROR, EACCES, "/dev/kvm is opened")                               \
	X(KVM_CREATE_VM, "kvm.create_vm", ERROR, ENOMEM, "KVM makes a VM (KVM_CREATE_VM)")         \
	X(KVM_CREATE_VCPU, "kvm.create_vcpu", ERROR, ENOMEM, "KVM makes a vCPU (KVM_CREATE_VCPU)") \
	X(KVM_MAP_RUN, "kvm.map_run", ERROR, ENOMEM, "a vCPU's kvm_run is mapped")                 \
	X(KVM_SET_CPUID, "kvm.set_cpuid", ERROR, EINVAL, "KVM_SET_CPUID2 for a new vCPU")          \
	X(KVM_SET_MEMORY, "kvm.set_memory", ERROR, ENOMEM,                                         \
	  "KVM hears of a bank of memory (KVM_SET_USER_MEMORY_REGION)")                            \
	X(KVM_CREATE_IRQCHIP, "kvm.create_irqchip", ERROR, ENOMEM,                                 \
	  "KVM makes the interrupt chips (KVM_CREATE_IRQCHIP)")                                    \
	X(KVM_REGISTERS, "kvm.registers", ERROR, EIO, "a new guest's registers are set")           \
	X(KVM_RUN, "kvm.run", ERROR, EINTR, "KVM_RUN on a vCPU's thread")                          \
	X(KVM_COMPLETE, "kvm.complete", ERROR, EAGAIN, "KVM_RUN that only completes an access")    \
	X(KVM_GET_STATE, "kvm.get_state", ERROR, EIO, "a vCPU's state is read to freeze its VM")   \
	X(KVM_GET_CHIPS, "kvm.get_chips", ERROR, EIO, "KVM_GET_IRQCHIP to freeze a VM")            \
	X(KVM_SET_STATE, "kvm.set_state", ERROR, EIO, "a clone's vCPU gets its state")             \
	X(KVM_SET_CHIPS, "kvm.set_chips", ERROR, EIO, "KVM_SET_IRQCHIP for a clone")               \
	/* userfaultfd and the window */                                                           \
	X(UFFD_OPEN, "uffd.open", ERROR, EPERM, "userfaultfd is opened")                           \
	X(UFFD_API, "uffd.api", ERROR, EINVAL, "userfaultfd agrees on its features (UFFDIO_API)")  \
	X(UFFD_READ, "uffd.read", ERROR, EINTR, "faults are read")                                 \
	X(UFFD_REGISTER, "uffd.register", ERROR, ENOMEM,                                           \
	  "UFFDIO_REGISTER on a piece of the window")                                              \
	X(UFFD_CONTINUE, "uffd.continue", ERROR, EAGAIN, "UFFDIO_CONTINUE shows pages")            \
	X(UFFD_PROTECT, "uffd.protect", ERROR, EAGAIN,                                             \
	  "pages are write-protected, or freed of it (UFFDIO_WRITEPROTECT)")                       \
	X(UFFD_WAKE, "uffd.wake", ERROR, EAGAIN, "UFFDIO_WAKE after a fault was served")           \
	X(WINDOW_CREATE, "window.create", ERROR, ENOMEM, "address space for a VM's window")        \
	X(WINDOW_MAP, "window.map", ERROR, ENOMEM, "mmap of a piece of the pool into the window")  \
	X(WINDOW_CLOSE, "window.close", ERROR, ENOMEM,                                             \
	  "mmap that makes a piece of the window void")                                            \
	X(WINDOW_PROTECT, "window.protect", ERROR, ENOMEM, "mprotect of a piece of the window")    \
	X(WINDOW_HIDE, "window.hide", ERROR, ENOMEM, "madvise that drops pages of the window")     \
	/* the pool and the store */                                                               \
	X(POOL_CREATE, "pool.create", ERROR, ENOMEM,                                               \
	  "a sharing domain's file of the pool is made")                                           \
	X(POOL_MAP, "pool.map", ERROR, ENOMEM, "a process maps its file of the pool")              \
	X(POOL_REOPEN, "pool.reopen", ERROR, EMFILE,                                               \
	  "a file of the pool is opened for reading only, for the merger")                         \
	X(POOL_CLEAN, "pool.clean", ERROR, EINTR, "fallocate punches frames out of the pool")      \
	X(POOL_FILL, "pool.fill", ERROR, ENOSPC, "fallocate makes a page of zeroes in the pool")   \
	X(POOL_READ, "pool.read", ERROR, EIO, "a frame's bytes are read (pread)")                  \
	X(POOL_WRITE, "pool.write", ERROR, ENOSPC, "bytes are written into a frame (pwrite)")      \
	X(STORE_CREATE, "store.create", ERROR, ENOSPC,                                             \
	  "memory for packed pages, or the swap file")                                             \
	X(STORE_MEM_WRITE, "store.mem_write", ERROR, ENOSPC, "a packed page is written")           \
	X(STORE_MEM_READ, "store.mem_read", ERROR, EINTR, "a packed page is read")                 \
	X(STORE_TRIM, "store.trim", ERROR, EINTR, "fallocate punches out what was packed")         \
	X(STORE_OPEN, "store.open", ERROR, EMFILE, "a process opens the swap file for itself")     \
	X(STORE_RING, "store.ring", ERROR, ENOMEM,                                                 \
	  "a process makes its io_uring for the swap file")                                        \
	X(STORE_ENTER, "store.enter", ERROR, EINTR, "io_uring_enter for the swap file")            \
	X(STORE_WRITE, "store.write", RESULT, EIO, "a write to the swap file is answered")         \
	X(STORE_READ, "store.read", RESULT, EAGAIN, "a read of the swap file is answered")         \
	X(STORE_SHORT, "store.short", BYTES, 0,                                                    \
	  "the swap file's answer says fewer bytes than it did")                                   \
	/* processes, threads, memory */                                                           \
	X(VM_MEMORY, "vm.memory", ERROR, ENOMEM, "memory for a new VM's records")                  \
	X(VM_MAILBOX, "vm.mailbox", ERROR, EMFILE, "a VM's mailbox is made")                       \
	X(VM_LINK, "vm.link", ERROR, EMFILE, "a link between host and VM is made")                 \
	X(VM_STREAM, "vm.stream", ERROR, EMFILE, "a VM's console and agent sockets are made")      \
	X(VM_FORK, "vm.fork", ERROR, EAGAIN, "fork of a VM's process")                             \
	X(VM_PIDFD, "vm.pidfd", ERROR, EMFILE, "pidfd of a VM's process")                          \
	X(VM_THREAD, "vm.thread", ERROR, EAGAIN, "a vCPU's thread is made")                        \
	X(GUEST_MEMORY, "guest.memory", ERROR, ENOMEM, "memory for a guest's console in the host") \
	X(EXEC_MEMORY, "exec.memory", ERROR, ENOMEM, "memory for a command in a guest")            \
	X(TEMPLATE_FORK, "template.fork", ERROR, EAGAIN, "fork of a template's process")           \
	X(TEMPLATE_LEARN, "template.learn", ERROR, ENOMEM,                                         \
	  "memory for what a template's clones write to at first")                                 \
	X(CLONE_FORK, "clone.fork", ERROR, EAGAIN, "fork of a clone's process")                    \
	X(CLONE_MEMORY, "clone.memory", ERROR, ENOMEM, "memory for a request for clones")          \
	X(CLONE_SPARE, "clone.spare", ERROR, EAGAIN, "fork of the clone that is kept ready")       \
	X(CLONE_PIDFD, "clone.pidfd", ERROR, EMFILE, "pidfd of a clone's or template's process")   \
	X(CLONE_MAILBOX, "clone.mailbox", ERROR, ENOMEM, "a clone maps its mailbox")               \
	X(CLONE_IDENTITY, "clone.identity", ERROR, ENOSPC, "a guest's generation id is written")   \
	X(WORKER_FORK, "worker.fork", ERROR, EAGAIN, "fork of the merger or the reclaimer")        \
	X(WORKER_PIDFD, "worker.pidfd", ERROR, EMFILE, "pidfd of the merger or the reclaimer")     \
	X(WORKER_BOARD, "worker.board", ERROR, ENOMEM,                                             \
	  "memory that merger or reclaimer share with VMs")                                        \
	X(WORKER_BATCH, "worker.batch", STEP, 0, "merger or reclaimer hand work to a VM")          \
	/* sockets, descriptors, the event loops */                                                \
	X(LINK_SEND, "link.send", ERROR, EAGAIN, "a message goes over a link")                     \
	X(LINK_RECEIVE, "link.receive", ERROR, EAGAIN, "a message comes over a link")              \
	X(CONTROL_ACCEPT, "control.accept", ERROR, EMFILE, "accept on the control socket")         \
	X(CONTROL_MEMORY, "control.memory", ERROR, ENOMEM, "memory for a control connection")      \
	X(CONTROL_READ, "control.read", ERROR, EAGAIN, "a request is read")                        \
	X(CONTROL_SEND, "control.send", ERROR, EAGAIN, "an answer is sent")                        \
	X(CONTROL_OPEN, "control.open", ERROR, EMFILE, "the control socket is made")               \
	X(CONTROL_DIRECTORY, "control.directory", ERROR, EACCES, "the run directory is made")      \
	X(HOST_WATCH, "host.watch", ERROR, ENOMEM, "epoll_ctl takes a descriptor in")              \
	X(HOST_WAIT, "host.wait", ERROR, EINTR, "the host waits for events (epoll_wait)")          \
	X(HOST_EPOLL, "host.epoll", ERROR, EMFILE, "the host makes its event loop")                \
	X(LOOP_CREATE, "loop.create", ERROR, ENOMEM, "a VM makes its io_uring")                    \
	X(LOOP_SUBMIT, "loop.submit", ERROR, EINTR, "a VM's loop enters io_uring")                 \
	X(LOOP_ENTRY, "loop.entry", ERROR, EBUSY, "a place in io_uring's submission queue")        \
	X(LOOP_POLL, "loop.poll", RESULT, ENOMEM, "io_uring says that a descriptor is ready")      \
	X(CONSOLE_SEND, "console.send", ERROR, EAGAIN, "a guest's output goes to the host")        \
	X(CONSOLE_RECEIVE, "console.receive", ERROR, EAGAIN, "the host reads a guest's output")    \
	X(AGENT_SEND, "agent.send", ERROR, EAGAIN, "the host sends a command to a guest's agent")  \
	X(AGENT_RECEIVE, "agent.receive", ERROR, EAGAIN,                                           \
	  "the host reads what a guest's agent says")                                              \
	/* disks and files */                                                                      \
	X(BLK_RESULT, "blk.result", RESULT, EIO, "a disk's request is answered")                   \
	X(BLK_SHORT, "blk.short", BYTES, 512, "a disk's answer says fewer bytes than it did")      \
	X(BLK_MEMORY, "blk.memory", ERROR, ENOMEM, "memory for a disk's request")                  \
	X(BLK_KEEP, "blk.keep", ERROR, EIO, "what a volatile disk's write goes over is read")      \
	X(BLK_KEEP_MEMORY, "blk.keep_memory", ERROR, ENOMEM, "memory for that")                    \
	X(BLK_LOSE, "blk.lose", ERROR, EIO, "a power cut: what was there before is put back")      \
	X(PMEM_READ, "pmem.read", ERROR, EIO, "pread of a file's page into the pool")              \
	X(PMEM_FLUSH, "pmem.flush", RESULT, EIO, "a write or fsync of a shared file is answered")  \
	X(PMEM_CLEAN, "pmem.clean", RESULT, EIO,                                                   \
	  "the same where a shared file's pages are wanted clean")                                 \
	X(PMEM_OPEN, "pmem.open", ERROR, EMFILE, "a file for persistent memory is opened")         \
	X(PMEM_SETS, "pmem.sets", ERROR, EMFILE,                                                   \
	  "memory for which pages of a shared file are dirty")                                     \
	X(IMAGE_OPEN, "image.open", ERROR, EMFILE, "a kernel or initrd is opened")                 \
	X(IMAGE_MAP, "image.map", ERROR, ENOMEM, "a kernel or initrd is mapped")                   \
	X(DISK_OPEN, "disk.open", ERROR, EMFILE, "a disk is opened")                               \
	X(STATS_WRITE, "stats.write", ERROR, ENOSPC, "the file of --stats is made")                \
	/* commands, and what becomes the host in the background */                                \
	X(ASK_SOCKET, "ask.socket", ERROR, EMFILE, "a socket to a host or a keeper")               \
	X(ASK_MEMORY, "ask.memory", ERROR, ENOMEM, "memory for a host's answer")                   \
	X(ASK_SEND, "ask.send", ERROR, EINTR, "a command sends a request")                         \
	X(ASK_RECEIVE, "ask.receive", ERROR, EINTR, "a command reads an answer")                   \
	X(DAEMON_PIPE, "daemon.pipe", ERROR, EMFILE, "by which a new host says that it is up")     \
	X(DAEMON_FORK, "daemon.fork", ERROR, EAGAIN, "fork of a host in the background")           \
	X(DAEMON_LOG, "daemon.log", ERROR, ENOSPC, "its log is opened")

#endif
