//go:build noengine

package engine

// built says whether this program contains the loader of the library.
const built = false

// ChildMain does nothing, because this program was built with the tag noengine. That
// tag leaves out the loader of the library, so that the binary needs no libc.
func ChildMain() {}
