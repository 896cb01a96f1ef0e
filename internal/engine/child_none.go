//go:build noengine

package engine

// built says whether this program can be an engine.
const built = false

// ChildMain does nothing: the program was built with the tag noengine, which
// leaves the loader of the library out, so that the binary needs no libc.
func ChildMain() {}
