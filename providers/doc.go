// Package providers is the contract between the node agent and the drivers of
// isolation: it says what an instance is, what a driver must promise, and how
// its errors are told apart. Each driver lives in a folder below; providertest
// holds the suite that all of them pass.
//
// A provider makes, starts, stops, finds and destroys instances on the machine
// it runs on. It knows nothing of remote machines, users, services, files or
// commands: what happens inside an instance is the guest's business.
package providers
