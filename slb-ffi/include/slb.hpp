// slb for C++17: handles that end by themselves, and errors that are thrown. All else is slb.h's.
#ifndef SLB_HPP
#define SLB_HPP

#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "slb.h"

namespace slb {

// What slb.h gives as a negative number.
class error : public std::runtime_error {
 public:
    explicit error(int code, const std::string& more = {})
        : std::runtime_error(more.empty() ? slb_strerror(code) : more), code_(code) {}
    int code() const noexcept { return code_; }

 private:
    int code_;
};

// Throws where `result` is an error; else gives it.
inline int check(int result) {
    if (result < 0) throw error(result);
    return result;
}

namespace detail {
template <typename T, int (*Free)(T*)>
struct deleter {
    void operator()(T* handle) const noexcept { Free(handle); }
};
template <typename T, int (*Free)(T*)>
using handle = std::unique_ptr<T, deleter<T, Free>>;
}  // namespace detail

// A compiled configuration. It has to stay while a mux, host or proxy uses it.
using snapshot = detail::handle<slb_snapshot, slb_snapshot_free>;

// A configuration in TOML.
class config {
 public:
    explicit config(std::string_view toml) {
        std::string faults(4096, '\0');
        slb_config* made = nullptr;
        int result = slb_config_parse(toml.data(), toml.size(), faults.data(), faults.size(), &made);
        if (result < 0) {
            faults.resize(faults.find('\0'));
            throw error(result, faults);
        }
        handle_.reset(made);
    }

    slb_role role() const { return static_cast<slb_role>(check(slb_config_role(handle_.get()))); }

    // 0 in `weight`: the weight stays.
    void set_backend(const char* name, uint32_t weight, slb_state state) {
        check(slb_config_set_backend(handle_.get(), name, weight, static_cast<uint8_t>(state)));
    }

    void set_condition(const char* name, bool healthy) {
        check(slb_config_set_condition(handle_.get(), name, healthy));
    }

    slb::snapshot compile(const slb_snapshot* previous = nullptr) const {
        slb_snapshot* made = nullptr;
        check(slb_config_snapshot(handle_.get(), previous, &made));
        return slb::snapshot(made);
    }

    slb_config* get() const noexcept { return handle_.get(); }

 private:
    detail::handle<slb_config, slb_config_free> handle_;
};

// A configuration that is written field by field. Names have to stay as long as the builder. Its functions
// return the index of what they add, and throw what slb_builder_error says.
class builder {
 public:
    explicit builder(const slb_capacity& capacity) {
        slb_builder* made = nullptr;
        slb::check(slb_builder_new(&capacity, &made));
        handle_.reset(made);
    }

    void underlay(const slb_underlay& underlay) { check(slb_builder_underlay(get(), &underlay)); }
    int frontend(const slb_frontend& frontend) { return check(slb_builder_frontend(get(), &frontend)); }
    int pool(const slb_pool& pool) { return check(slb_builder_pool(get(), &pool)); }
    int backend(size_t pool, const slb_backend& backend) {
        return check(slb_builder_backend(get(), pool, &backend));
    }
    int rule(const slb_rule& rule) { return check(slb_builder_rule(get(), &rule)); }
    int inbound_nat(const slb_inbound_nat& nat) { return check(slb_builder_inbound_nat(get(), &nat)); }
    int outbound(const slb_outbound& outbound) { return check(slb_builder_outbound(get(), &outbound)); }
    void proxy(bool multi, uint16_t backend_port) { check(slb_builder_proxy(get(), multi, backend_port)); }
    int frontend_port(uint16_t port, const slb_address* address = nullptr) {
        return check(slb_builder_frontend_port(get(), port, address));
    }
    // 0 in `weight`: the weight stays.
    void set_backend(size_t pool, size_t backend, uint32_t weight, slb_state state) {
        check(slb_builder_set_backend(get(), pool, backend, weight, static_cast<uint8_t>(state)));
    }
    void set_condition(size_t pool, size_t backend, bool healthy) {
        check(slb_builder_set_condition(get(), pool, backend, healthy));
    }

    // Throws every fault of the configuration, a line each.
    slb::snapshot compile(const slb_snapshot* previous = nullptr) const {
        slb_snapshot* made = nullptr;
        int result = slb_snapshot_new(get(), previous, &made);
        if (result < 0) {
            std::string faults(4096, '\0');
            int count = slb_builder_faults(get(), faults.data(), faults.size());
            faults.resize(count > 0 ? faults.find('\0') : 0);
            throw error(result, faults);
        }
        return slb::snapshot(made);
    }

    // For the functions of slb.h that have no wrapper; `check` their results with this one's.
    slb_builder* get() const noexcept { return handle_.get(); }

    int check(int result) const {
        if (result < 0) throw error(result, slb_builder_error(get()));
        return result;
    }

 private:
    detail::handle<slb_builder, slb_builder_free> handle_;
};

// Options of a mux with what is usual, and the key: 128 bits that are random and secret.
inline slb_mux_options mux_options(uint64_t key_low, uint64_t key_high) {
    slb_mux_options options;
    slb_mux_options_init(&options);
    options.key[0] = key_low;
    options.key[1] = key_high;
    return options;
}

// The same of a host agent or a proxy.
inline slb_nat_options nat_options(uint64_t key_low, uint64_t key_high) {
    slb_nat_options options;
    slb_nat_options_init(&options);
    options.key[0] = key_low;
    options.key[1] = key_high;
    return options;
}

namespace detail {
inline void read(const config& config, slb_mux_options& options) {
    slb::check(slb_config_mux_options(config.get(), &options));
}
inline void read(const config& config, slb_nat_options& options) {
    slb::check(slb_config_nat_options(config.get(), &options));
}

// A mux, host agent or proxy, and the snapshot that it uses.
template <typename Role, typename Options, int (*New)(const slb_snapshot*, const Options*, Role**),
          int (*Free)(Role*), int (*Process)(Role*, uint64_t, slb_frame*, size_t, slb_verdict*),
          int (*Advance)(Role*, uint64_t, slb_frame*, size_t),
          int (*Install)(Role*, const slb_snapshot*, slb_snapshot**),
          int (*SetOptions)(Role*, const Options*), int (*Stats)(Role*, slb_stats*)>
class role {
 public:
    role(slb::snapshot snapshot, const Options& options) : snapshot_(std::move(snapshot)) {
        Role* made = nullptr;
        slb::check(New(snapshot_.get(), &options, &made));
        handle_.reset(made);
    }

    // Options are those of the configuration; the key is yours.
    role(const config& config, Options options) : role(config.compile(), with(config, options)) {}

    // Gives each frame its verdict, rewritten in place where it is to be sent.
    void process(uint64_t now, slb_frame* frames, size_t count) {
        slb::check(Process(handle_.get(), now, frames, count, nullptr));
    }

    // Does what is due without a packet; gives how many of `spare` are to be sent, those with a length.
    int advance(uint64_t now, slb_frame* spare, size_t count) {
        return slb::check(Advance(handle_.get(), now, spare, count));
    }

    // Puts a changed configuration, a `config` or a `builder`, in place; no flow moves.
    template <typename Configuration>
    void install(const Configuration& configuration) {
        slb::snapshot next = configuration.compile(snapshot_.get());
        slb::check(Install(handle_.get(), next.get(), nullptr));
        snapshot_ = std::move(next);
    }

    void set_options(const Options& options) { slb::check(SetOptions(handle_.get(), &options)); }

    slb_stats stats() const {
        slb_stats stats;
        slb::check(Stats(handle_.get(), &stats));
        return stats;
    }

    const slb_snapshot* current() const noexcept { return snapshot_.get(); }

    Role* get() const noexcept { return handle_.get(); }

 private:
    static Options with(const config& config, Options options) {
        read(config, options);
        return options;
    }

    slb::snapshot snapshot_;  // before the role, so that it goes after it
    detail::handle<Role, Free> handle_;
};
}  // namespace detail

using host = detail::role<slb_host, slb_nat_options, slb_host_new, slb_host_free, slb_host_process,
                          slb_host_advance, slb_host_install, slb_host_set_options, slb_host_stats>;

using proxy = detail::role<slb_proxy, slb_nat_options, slb_proxy_new, slb_proxy_free, slb_proxy_process,
                           slb_proxy_advance, slb_proxy_install, slb_proxy_set_options, slb_proxy_stats>;

class mux : public detail::role<slb_mux, slb_mux_options, slb_mux_new, slb_mux_free, slb_mux_process,
                                slb_mux_advance, slb_mux_install, slb_mux_set_options, slb_mux_stats> {
 public:
    using role::role;

    mux(const config& config, uint64_t key_low, uint64_t key_high)
        : role(config, mux_options(key_low, key_high)) {}

    std::vector<slb_flow> flows() const {
        std::vector<slb_flow> all;
        slb_flow some[64];
        uint64_t cursor = 0;
        while (int count = check(slb_mux_flows(get(), &cursor, some, 64)))
            all.insert(all.end(), some, some + count);
        return all;
    }
};

}  // namespace slb

#endif
