// Package transporttest is the suite that every transport passes. A new one
// joins with a Setup that starts what it needs and a call of Run.
package transporttest
