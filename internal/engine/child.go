//go:build !noengine

package engine

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/ebitengine/purego"
)

// built says whether this program contains the loader of the library.
const built = true

// ChildMain must be the first call in main, and in the TestMain of every test binary that
// starts an engine, because [Engine.Run] starts the running program once more as its child.
// In any other process it returns at once. In the child it runs the server until the
// parent closes the child's standard input, and then exits the process. No other function
// outside main exits the process.
func ChildMain() {
	if os.Getenv(childEnv) == "" {
		return
	}
	// The parent stops the engine last, because the consumer needs it until the consumer
	// itself has stopped. So the child ignores the signals that a terminal or a service
	// manager sends to all processes at once.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)

	code := 0
	if err := serveLibrary(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	// os.Exit skips the library's exit handlers. They are not needed, because the server
	// has shut down.
	os.Exit(code) //nolint:forbidigo // this is the child's main
}

// serveLibrary opens the library at the path args[0], and runs the library's command line
// with the other arguments. It returns once the server has stopped.
func serveLibrary(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("%s is set, but the engine did not start this process", childEnv)
	}
	library := args[0]
	handle, err := purego.Dlopen(library, purego.RTLD_NOW|purego.RTLD_GLOBAL)
	if err != nil {
		return fmt.Errorf("open library: %w", err)
	}
	var (
		setSignalHandlersEnabled func(int32)
		queryCmdline             func(argc int32, argv **byte) uintptr
		resultError              func(result uintptr) string
	)
	for _, f := range []struct {
		name string
		ptr  any
	}{
		{"chdb_set_signal_handlers_enabled", &setSignalHandlersEnabled},
		{"chdb_query_cmdline", &queryCmdline},
		{"chdb_result_error", &resultError},
	} {
		if _, err := purego.Dlsym(handle, f.name); err != nil {
			return fmt.Errorf("library %s is not libchdb %s: %w", library, LibraryVersion, err)
		}
		purego.RegisterLibFunc(f.ptr, handle, f.name)
	}

	// After a deadly signal the library's own handlers would spend minutes on writing a
	// stack trace. Without them a crashed child ends at once, and the parent can start the
	// next one.
	setSignalHandlersEnabled(0)

	if err := waitAtPrompt(); err != nil {
		return err
	}

	args = append([]string{"clickhouse"}, args[1:]...)
	argv := make([]*byte, 0, len(args)+1)
	for _, arg := range args {
		c, err := syscall.BytePtrFromString(arg)
		if err != nil {
			return fmt.Errorf("argument %q: %w", arg, err)
		}
		argv = append(argv, c)
	}
	argv = append(argv, nil)

	// argv points to Go memory. Pinning keeps both in place and alive during the call.
	var pinner runtime.Pinner
	defer pinner.Unpin()
	for _, c := range argv[:len(args)] {
		pinner.Pin(c)
	}
	pinner.Pin(&argv[0])
	result := queryCmdline(int32(len(args)), &argv[0])
	if result == 0 {
		return errors.New("server returned no result")
	}
	if msg := resultError(result); msg != "" {
		return fmt.Errorf("server: %s", msg)
	}
	return nil
}

// waitAtPrompt replaces the standard input of this process by a pseudo-terminal, and closes
// the terminal when the original standard input ends. To the library this looks like a user
// who types nothing at its prompt: it keeps the server running until the terminal is closed,
// and then shuts the server down.
//
// The terminal is needed because without one the library behaves like a batch job, and ends
// the process at any unexpected exception. A client that is refused is enough for that, or
// an idle connection that is reset.
func waitAtPrompt() error {
	var (
		posixOpenpt func(flags int32) int32
		grantpt     func(fd int32) int32
		unlockpt    func(fd int32) int32
		ptsname     func(fd int32) string
		dup2        func(from, to int32) int32
	)
	purego.RegisterLibFunc(&posixOpenpt, purego.RTLD_DEFAULT, "posix_openpt")
	purego.RegisterLibFunc(&grantpt, purego.RTLD_DEFAULT, "grantpt")
	purego.RegisterLibFunc(&unlockpt, purego.RTLD_DEFAULT, "unlockpt")
	purego.RegisterLibFunc(&ptsname, purego.RTLD_DEFAULT, "ptsname")
	purego.RegisterLibFunc(&dup2, purego.RTLD_DEFAULT, "dup2")

	input, err := syscall.Dup(0)
	if err != nil {
		return fmt.Errorf("keep standard input: %w", err)
	}
	syscall.CloseOnExec(input)

	user := posixOpenpt(syscall.O_RDWR | syscall.O_NOCTTY)
	if user < 0 || grantpt(user) != 0 || unlockpt(user) != 0 {
		return errors.New("open a pseudo-terminal: none to be had, is /dev/pts mounted?")
	}
	syscall.CloseOnExec(int(user))
	name := ptsname(user)
	terminal, err := syscall.Open(name, syscall.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return fmt.Errorf("open pseudo-terminal %s: %w", name, err)
	}
	if dup2(int32(terminal), 0) != 0 {
		return fmt.Errorf("make pseudo-terminal %s the standard input", name)
	}
	if err := syscall.Close(terminal); err != nil {
		return fmt.Errorf("close pseudo-terminal %s: %w", name, err)
	}

	go func() {
		f := os.NewFile(uintptr(input), "standard input")
		_, _ = io.Copy(io.Discard, f) // an error ends the input too
		_ = syscall.Close(int(user))
	}()
	return nil
}
