//go:build tools

// Package tools keeps flannel among the requirements of this module when somebody runs `go mod tidy -e`.
package tools

import _ "github.com/flannel-io/flannel"
