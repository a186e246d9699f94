//go:build tools

// Package tools names the commands that hk-dr builds from this module, so that go.mod and go.sum pin everything they
// are made of. Nothing here is ever compiled itself.
package tools

import (
	_ "filippo.io/age/cmd/age-keygen"
	_ "filippo.io/age/extra/age-plugin-pq"
)
